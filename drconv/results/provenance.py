"""Where a number comes from: code, versions, hardware, command."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "drconv",
    "torch",
    "torchvision",
    "timm",
    "hydra-core",
    "omegaconf",
    "numpy",
    "pillow",
    "safetensors",
    "triton",
)
SOURCES = (".py", ".yaml", ".yml", ".cpp", ".h")
ROOT = Path(__file__).parents[2]


def code() -> dict[str, Any]:
    """Commit of the checkout and whether files differ from it; None where this is no checkout."""
    if _git("rev-parse", "--show-prefix") != "":  # installed, perhaps below somebody's own repository
        return {"commit": None, "dirty": None}
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=all") or ""
    return {"commit": commit or None, "dirty": None if commit is None else is_dirty(status)}


def is_dirty(status: str) -> bool:
    """Whether ``git status --porcelain`` lists a changed file, or a new one that can change what a run computes."""
    lines = (line.rstrip('"') for line in status.splitlines())  # git quotes unusual names
    return any(not line.startswith("??") or line.endswith(SOURCES) for line in lines)


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["cuda"] = torch.version.cuda
    return found


def hardware(device: torch.device, num_devices: int) -> dict[str, Any]:
    """Names and counts; no host name, no user."""
    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else cpu_name(),
        "num_devices": num_devices,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def command_line() -> str:
    """The command as typed, the script's folder left out."""
    program = Path(sys.argv[0]).name  # such as train.py, or "drconv train" of the installed command
    words = program.split() if program.startswith("drconv ") else ["python", program]
    return shlex.join([*words, *sys.argv[1:]])


def _git(*arguments: str) -> str | None:
    try:
        outcome = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return outcome.stdout.strip() if outcome.returncode == 0 else None
