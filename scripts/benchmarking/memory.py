"""Peak memory of a training step: of the device on CUDA, of a child process on a CPU."""

import ctypes
import multiprocessing
import re
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from scripts.benchmarking.sides import build, image, training_step

PROC = Path("/proc/self")


def missing_for(device: str) -> str | None:
    """Why memory cannot be measured here, or None."""
    if device == "cpu" and not (PROC / "clear_refs").exists():
        return "memory on a CPU is read from /proc/self, which is not there; leave memory out of --parts"
    return None


def peak_memory(network: str, side: str, device: str, threads: int, batch: int = 32) -> float:
    """MiB that two training steps add: activations, gradients, momentum and workspace, not the weights.

    On a CPU a child process measures itself, so that neither this process nor an earlier side counts.

    Raises:
        RuntimeError: the child failed.
    """
    if device == "cuda":
        return _peak_on_device(network, side, batch)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_child, args=(network, side, threads, batch, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"the process that measures the memory of {network}, {side} ended early") from None
    finally:
        child.join()


def _peak_on_device(network: str, side: str, batch: int) -> float:
    step = training_step(build(network, side, "cuda"), side, image(network, batch, 224, "cuda"))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _measure_child(network: str, side: str, threads: int, batch: int, connection: Connection) -> None:
    torch.set_num_threads(threads)
    step = training_step(build(network, side, "cpu"), side, image(network, batch, 224, "cpu"))
    ctypes.CDLL(None).malloc_trim(0)  # gives back what building has freed: a step would reuse it unseen
    before = _read_status("VmRSS")
    (PROC / "clear_refs").write_text("5")  # the peak starts again at what is in use now
    step()
    step()
    connection.send((_read_status("VmHWM") - before) / 1024)


def _read_status(name: str) -> int:
    """KiB of a line of /proc/self/status."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", (PROC / "status").read_text(), re.MULTILINE)
    assert found, name
    return int(found[1])
