"""Weights in safetensors, resume states that load with ``weights_only=True``; both replaced atomically."""

import difflib
import io
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from drconv.errors import RunFolderError, WeightsError
from drconv.files import replace_file

RESUME_KEYS = ("state", "data", "interval", "interval_steps", "last_entry")
STATE_KEYS = ("step", "elapsed_s", "task", "optimizer", "scaler", "ema")


def save_weights(path: Path, network: nn.Module, metadata: dict[str, str]) -> None:
    """Saves all parameters and buffers."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    replace_file(path, save(tensors, metadata=metadata))


def load_weights(path: Path, network: nn.Module) -> None:
    """Loads a safetensors file that must hold exactly the network's parameters and buffers.

    Raises:
        WeightsError: damaged file; missing or unexpected names; a shape that differs.
    """
    if not path.exists():
        raise WeightsError(f"weights={path} is missing; give an existing file, or train with overwrite=true")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"weights={path} cannot be read ({error}); is it a complete safetensors file?") from None
    expected = network.state_dict()
    if problem := _difference(expected, tensors):
        raise WeightsError(f"weights={path} do not fit the network: {problem}; check model=")
    network.load_state_dict(tensors)


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Saves tensors, numbers, strings, lists and dictionaries."""
    content = io.BytesIO()  # in memory first: torch words a full disk as an error of its own archive
    torch.save(state, content)
    replace_file(path, content.getvalue())


def load_resume(path: Path, device: torch.device) -> dict[str, Any]:
    """Loads a resume state without running code from it.

    Raises:
        RunFolderError: the file is damaged, or is no resume state.
    """
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        missing = [key for key in RESUME_KEYS if key not in saved] + [k for k in STATE_KEYS if k not in saved["state"]]
        if missing:
            raise ValueError(f"no {missing[0]}")
        return saved
    except Exception as error:  # torch raises many kinds for a truncated or foreign file
        reason = str(error).strip().split("\n")[0][:120]
        raise RunFolderError(
            f"{path} is damaged ({type(error).__name__}: {reason}); overwrite=true starts the run again and keeps "
            f"the old folder under another name"
        ) from None


def _difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, the network's is {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    parts = []
    if missing:
        near = difflib.get_close_matches(missing[0], unexpected, n=1)
        parts.append(f"missing {_some(missing)}" + (f" (near: {near[0]})" if near else ""))
    if unexpected:
        parts.append(f"unexpected {_some(unexpected)}")
    if shapes:
        parts.append(_some(shapes))
    return "; ".join(parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
