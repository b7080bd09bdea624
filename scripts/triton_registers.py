"""Compile the Triton kernels for sm_80 (A100) and sm_90 (H100) without a GPU and print what ptxas says of them.

    python scripts/triton_registers.py            # the worst cases: the largest tile and the narrowest ones
    python scripts/triton_registers.py --all      # every type and layout, every tile that the networks come to
    python scripts/triton_registers.py --write    # the worst cases into docs/performance_gpu.md

A kernel is specialised on its layout: "last16" is channels-last with channels that are a multiple of 16, "last1"
channels-last with odd channels, "first" is NCHW. "spills" are bytes per thread, "shared" bytes per program.
"""

import argparse
import contextlib
import io
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.nn.kernels import triton_backward, triton_forward, triton_sort
from drconv.nn.kernels.triton_forward import Tile
from scripts.benchmarking.generated import write_block
from scripts.roofline import find_layers

TARGETS = (80, 90)
TYPES = {"fp32": ("fp32", "tf32x3"), "tf32": ("fp32", "tf32"), "bf16": ("bf16", "tf32"), "fp16": ("fp16", "tf32")}
LAYOUTS = {"last16": 16, "last8": 8, "last1": 1, "first": 1}
NETWORKS = tuple(f"drconv_{name}_{width}" for name in ("mobilenetv1", "mobilenetv2") for width in ("0.25x", "1.0x"))
NETWORKS += tuple(f"drconv_shufflenetv2_{width}" for width in ("0.25x", "0.5x", "1x", "1.5x", "2x"))
BATCHES, REGIONS = (1, 8, 32, 128), (1, 4, 8, 32)
# Pixels of a region, channels in and out, and the layouts in which such tiles need the most registers.
LARGEST = ((4096, 512, 512), ("last1", "first"))
NARROW = ((12544, 48, 8), ("last8", "last1"))
SMALL = ((4096, 64, 32), ("last1",))
MATRIX_KERNELS = {
    "multiply": (triton_forward.multiply_regions, triton_forward.product_tile),
    "multiply_transposed": (triton_forward.multiply_regions, triton_forward.product_tile),
    "filter_gradient": (triton_backward.sum_filter_gradient, triton_backward.filter_gradient_tile),
    "guide_gradient": (triton_backward.guide_gradient, triton_forward.product_tile),
}
FP32 = {"scale", "logits", "logits_gradient", "scale_gradient", "result"}
INT32 = {"order", "starts", "counts"}


@dataclass
class Record:
    """What ptxas reports of one kernel."""

    target: int
    kernel: str
    type: str
    layout: str
    tile: tuple[int, ...]
    registers: int
    spills: int
    shared: int


def compile_kernel(
    kernel: Any, constants: dict[str, Any], itype: str, aligned: bool, target: int, options: dict[str, int]
) -> tuple[int, int, int]:
    """Registers, spilled bytes and shared memory of a kernel; ``aligned``: all sizes and strides divide by 16."""
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        pointers = dict.fromkeys(FP32, "*fp32") | dict.fromkeys(INT32, "*i32") | {"mask": "*u8"}
        pointers |= dict.fromkeys(("x", "y", "filters", "gradient"), f"*{itype}")
        signature[name] = pointers.get(name, "i32")
        if name in pointers or aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile = knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return *read_log(log.getvalue()), compiled.metadata.shared


def read_log(report: str) -> tuple[int, int]:
    """Registers per thread and spilled bytes, from the assembler's own report."""
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores", report)
    assert registers, report
    assert spills, report
    return int(registers[1]), int(spills[1])


def matrix_constants(name: str, precision: str, layout: str, tile: Tile, regions: int) -> dict[str, Any]:
    """The compile-time arguments of a kernel that multiplies."""
    last = layout != "first"
    constants: dict[str, Any] = {
        "REGIONS": regions,
        "HAS_SCALE": True,
        "CHANNELS_LAST": last,
        "ALIGNMENT": LAYOUTS[layout],
        "PRECISION": precision,
        "BLOCK_PIXELS": tile.pixels,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_INNER": tile.inner,
    }
    if name != "filter_gradient":
        constants["REGIONS_PAD"] = regions
    if name.startswith("multiply"):
        constants["TRANSPOSED"] = name == "multiply_transposed"
    unit = "channel" if last else "pixel"
    second = "y" if name.startswith("multiply") else "g"
    return constants | {f"x_{unit}": 1, f"{second}_{unit}": 1}


def measure_matrix(name: str, type_name: str, layout: str, tile: Tile, target: int) -> Record:
    """Compile one kernel that multiplies, for 32 regions: the most that are supported."""
    itype, precision = TYPES[type_name]
    constants = matrix_constants(name, precision, layout, tile, triton_sort.MAX_REGIONS)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    numbers = compile_kernel(MATRIX_KERNELS[name][0], constants, itype, layout == "last16", target, options)
    return Record(target, name, type_name, layout, tuple(tile), *numbers)


def measure_sort(name: str, regions: int, target: int) -> Record:
    """Compile one kernel of the counting sort."""
    block = triton_sort.block_of(1 << 20, regions)
    constants = {"REGIONS": regions, "REGIONS_PAD": regions, "BLOCK": block}
    if name == "place_pixels":
        constants["HISTOGRAMS"] = triton_sort.HISTOGRAMS
    numbers = compile_kernel(getattr(triton_sort, name), constants, "fp32", False, target, {"num_warps": 4})
    return Record(target, name, "-", f"{regions} regions", (block,), *numbers)


def sizes_of_networks() -> set[tuple[int, int, int]]:
    """Pixels of a region, channels in and out of all real layers, in both directions; a pixel is the least."""
    sizes = {(1, 1, 1)}
    layers = {layer for network in NETWORKS for layer in find_layers(network, 224)}
    for layer, batch, regions in itertools.product(layers, BATCHES, REGIONS):
        for pixels in {layer.positions, batch * layer.positions // regions, layer.positions // regions}:
            sizes.add((pixels, layer.channels, layer.out_channels))
            sizes.add((pixels, layer.out_channels, layer.channels))
    return sizes


def cases(name: str, itemsize: int, sizes: set[tuple[int, int, int]]) -> list[tuple[Tile, str]]:
    """Tiles and layouts of one kernel: those of the sizes, or the worst ones where none are given."""
    tile_of = MATRIX_KERNELS[name][1]
    if sizes:
        return list(itertools.product(sorted({tile_of(*size, itemsize) for size in sizes}), LAYOUTS))
    worst = (LARGEST, SMALL) if name == "filter_gradient" else (LARGEST, NARROW)
    return [(tile_of(*size, itemsize), layout) for size, layouts in worst for layout in layouts]


def measure(everything: bool) -> Iterator[Record]:
    """All records, or those of the worst cases."""
    types = TYPES if everything else ("fp32", "bf16")
    sizes = sizes_of_networks() if everything else set()
    for target in TARGETS:
        for name in ("count_regions", "place_pixels"):
            for regions in (1, 8, 32) if everything else (32,):
                yield measure_sort(name, regions, target)
        for name in MATRIX_KERNELS:
            if name == "multiply_transposed" and not everything:
                continue
            for type_name in types:
                itemsize = 4 if TYPES[type_name][0] == "fp32" else 2
                for tile, layout in cases(name, itemsize, sizes):
                    yield measure_matrix(name, type_name, layout, tile, target)


HEADER = "| target | kernel | type | layout | tile | registers | spills | shared |\n|" + "---|" * 8


def render(r: Record) -> str:
    """A line of the table."""
    numbers = f"{' x '.join(map(str, r.tile[:3]))} | {r.registers} | {r.spills} | {r.shared} |"
    return f"| sm_{r.target} | {r.kernel} | {r.type} | {r.layout} | {numbers}"


def page(records: list[Record]) -> str:
    """What stands in ``docs/performance_gpu.md``."""
    return "\n".join([f"Triton {triton.__version__}:\n", HEADER, *map(render, records), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--all", action="store_true", help="every type, tile and layout that is shipped")
    what.add_argument("--write", action="store_true", help="write the worst cases into docs/performance_gpu.md")
    arguments = parser.parse_args()
    if arguments.write:
        write_block("registers", page(list(measure(everything=False))))
        return
    print(HEADER)
    for record in measure(arguments.all):
        print(render(record), flush=True)


if __name__ == "__main__":
    main()
