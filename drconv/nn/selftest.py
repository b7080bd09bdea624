"""Does the operator work on this machine? Every kernel on every device against ``reference`` in float64.

    python scripts/selftest.py            # or: drconv selftest
    python -m drconv.nn.selftest

Needs torch alone and takes seconds, after the kernels are built. Prints versions, the largest error of the output and
of the four gradients, and times beside a plain convolution: what a report of a fault should contain. Ends with 1 where
a kernel is wrong, fails, or is missing on a device that should have it.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from drconv.nn import kernels
from drconv.nn.conv import DRConv2d
from drconv.nn.kernels import trial
from drconv.nn.kernels.geometry import Geometry

_GEOMETRY = Geometry((1, 1), (0, 0), (1, 1), 1)
_DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}
_PROBLEMS = ({"channels": 24, "side": 28}, {"channels": 116, "side": 14})  # ShuffleNetV2's, batch 4, 8 regions
_SECONDS = 0.3  # of timing, for each number


class Row(NamedTuple):
    """One kernel on one device in one type: what is wrong with it or None, and numbers as text."""

    device: str
    kernel: str
    dtype: str
    fault: str | None
    text: str


def versions() -> str:
    """What runs here, in one line for each part."""
    triton = kernels.load("triton")
    lines = [
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}",
        platform.platform(),
        f"CPU: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(f"cuda:{index}: {properties.name}, sm_{properties.major}{properties.minor}")
    if triton is not None:
        import triton as package

        lines.append(f"Triton {package.__version__}")
    return "\n".join(lines)


def rows(devices: Sequence[torch.device]) -> Iterator[Row]:
    """Every kernel on every device in every type."""
    for device in devices:
        for name in kernels.NAMES:
            for dtype in _DTYPES[device.type]:
                if name != "reference" or dtype == torch.float32:
                    yield _row(device, name, dtype)
        if device.type == "cpu":
            yield _layer_row()


def _row(device: torch.device, name: str, dtype: torch.dtype) -> Row:
    module, place = kernels.load(name), (str(device), name, str(dtype).removeprefix("torch."))
    tensors = trial.draw(dtype, device)
    if module is None or not module.supports(*tensors[:4], _GEOMETRY):
        reason = kernels.reason_against(name, module)
        is_missing = name == kernels.PREFERRED[device.type] and (module is None or dtype == torch.float32)
        return Row(*place, reason if is_missing else None, f"not used: {reason}")
    if (fault := trial.complaint(module.region_conv2d, dtype, device)) is not None:
        return Row(*place, fault, "")
    parts = []
    for problem in _PROBLEMS:
        tensors = trial.draw(dtype, device, batch=4, regions=8, **problem)
        error = max(trial.errors(module.region_conv2d, tensors).values())
        forward, step = _ratios(module.region_conv2d, tensors)
        size = f"{problem['channels']}x{problem['side']}x{problem['side']}"
        parts.append(f"{size}: error {error:.0e}, forward {forward}, with backward {step}")
    return Row(*place, None, "; ".join(parts))


@torch.no_grad()
def _layer_row() -> Row:
    """The whole-layer call of inference against the same layer with gradients."""
    torch.manual_seed(0)
    layer, x = DRConv2d(24, 24, 1).eval(), torch.randn(2, 24, 9, 9)
    with torch.enable_grad():
        expected = layer(x).detach()
    error = float((layer(x) - expected).abs().max() / expected.abs().max())
    fault = None if error <= trial.TOLERANCE[torch.float32] else f"a layer without gradients is off by {error:.0e}"
    return Row("cpu", "layer", "float32", fault, f"error {error:.0e}")


def _ratios(kernel: trial.Kernel, tensors: list[Tensor]) -> tuple[str, str]:
    """Time, and its ratio to a convolution with the first region's filter: forward, and forward and backward."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors[:4]]
    plain = [leaves[0], tensors[1][0, 0].clone().requires_grad_()]

    def step(run: Callable[[], Tensor], inputs: list[Tensor]) -> None:
        torch.autograd.grad(run(), inputs, tensors[4])

    def ours() -> Tensor:
        return kernel(leaves[0], leaves[1], leaves[2], leaves[3], _GEOMETRY)

    def theirs() -> Tensor:
        return F.conv2d(plain[0], plain[1])

    forward = _compare(torch.no_grad()(ours), torch.no_grad()(theirs), tensors[0].device)
    return forward, _compare(lambda: step(ours, leaves), lambda: step(theirs, plain), tensors[0].device)


def _compare(ours: Callable[[], object], theirs: Callable[[], object], device: torch.device) -> str:
    """Median time of ours and the median ratio, both sides in turn."""
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(times) < 5:
        times.append((_time(ours, device), _time(theirs, device)))
    ratio = statistics.median(a / b for a, b in times)
    return f"{statistics.median(a for a, _ in times) * 1e6:.0f} us ({ratio:.1f} x plain)"


def _time(run: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="such as cpu or cuda:0; all that there are by default")
    given = parser.parse_args(arguments).device
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if given is not None and given not in found:
        parser.error(f"--device {given} is not here; use one of {', '.join(found)}")
    print(versions(), flush=True)
    faults = 0
    for row in rows([torch.device(name) for name in ([given] if given else found)]):
        faults += row.fault is not None
        verdict = "ok  " if row.fault is None else "FAIL"
        print(f"{verdict} {row.device:7} {row.kernel:9} {row.dtype:8} {row.fault or row.text}", flush=True)
    print("every kernel is right" if faults == 0 else f"{faults} faults: please report them with all of the above")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
