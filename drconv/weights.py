"""Weights files: safetensors, replaced atomically, loaded whole or into a part of a larger network."""

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from drconv.errors import WeightsError
from drconv.files import open_regular, replace_file

ABOUT = "drconv"  # the key of a weights file's metadata; one alone, since safetensors orders several as it likes
OUTPUT_NAMES = "output_names"  # in the JSON under that key


@dataclass(frozen=True)
class LoadReport:
    """What a file gave to a network, by the names of the network's tensors.

    Attributes:
        source: the file.
        loaded: tensors that were filled.
        kept: tensors that stay at their start, with the reason.
        unused: tensors of the file that the network has no place for.
    """

    source: str
    loaded: list[str]
    kept: dict[str, str]
    unused: list[str]

    def __str__(self) -> str:
        parts = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        if self.kept:
            parts.append("not loaded: " + _some([f"{name} ({reason})" for name, reason in self.kept.items()]))
        if self.unused:
            parts.append(f"not used: {_some(self.unused)}")
        return "; ".join(parts)


def save_weights(path: Path, network: nn.Module, about: dict[str, Any]) -> None:
    """Saves all parameters and buffers, and what is to be known about them; the same input gives the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    replace_file(path, save(tensors, metadata={ABOUT: json.dumps(about, sort_keys=True)}))


def load_weights(path: Path, network: nn.Module) -> None:
    """Loads a safetensors file that must hold exactly the network's parameters and buffers.

    Raises:
        WeightsError: damaged file; missing or unexpected names; a shape that differs.
    """
    tensors = read_tensors(path)
    expected = network.state_dict()
    check_values(expected, tensors, f"weights={path}")
    if problem := _difference(expected, tensors):
        raise WeightsError(
            f"weights={path} do not fit the network: {problem}; check model=, or give backbone= in place of weights=, "
            f"which loads what fits"
        )
    network.load_state_dict(tensors)


def load_start(path: Path, network: nn.Module, num_outputs: int | None) -> LoadReport:
    """Loads weights to train on from; those of a classifier for another number of classes are left out.

    Args:
        path: safetensors file.
        network: whose classifier stays at its own start where it does not fit.
        num_outputs: classes of the network; None where it has none.

    Raises:
        WeightsError: more than the classifier differs, or the file is damaged.
    """
    tensors, own = read_tensors(path), network.state_dict()
    check_values(own, tensors, f"weights={path}")
    misfits = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    layers = {name.rpartition(".")[0] for name in misfits}
    trained = len(output_names(path))
    shares = {tensors[name].numel() / own[name].numel() for name in misfits}  # of outputs, there over here
    expected = {trained / num_outputs} if trained and num_outputs else shares
    if num_outputs and len(layers) == 1 and len(shares) == 1 and shares == expected:
        kept = {name: _misfit(own[name], tensors.pop(name)) for name in misfits}
        if own.keys() - kept.keys() == tensors.keys():
            network.load_state_dict(tensors, strict=False)
            return LoadReport(str(path), list(tensors), kept, [])
    load_weights(path, network)
    return LoadReport(str(path), list(own), {}, [])


def check_values(expected: dict[str, Tensor], found: dict[str, Tensor], source: str) -> None:
    """Raises a WeightsError for whole numbers where a network has fractions, and for what is infinite or no number.

    Args:
        expected: the network's tensors by name; others of the file are passed over.
        found: the file's.
        source: of the file, as it was typed: ``backbone=FILE``.
    """
    for name, tensor in found.items():
        if name not in expected or not expected[name].is_floating_point():
            continue
        if not tensor.is_floating_point():
            kinds = [str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, expected[name].dtype)]
            raise WeightsError(f"{source}: {name} is of {kinds[0]}, and that of the network of {kinds[1]}")
        if not tensor.to(expected[name].dtype).isfinite().all():
            raise WeightsError(f"{source}: {name} has values that are infinite or not a number; give another file")


def read_tensors(path: Path, key: str = "weights") -> dict[str, Tensor]:
    """All tensors of a safetensors file; ``key`` is what named it, for messages.

    Raises:
        WeightsError: missing or damaged file.
    """
    with _open(path, key) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict


@contextmanager
def _open(path: Path, key: str = "weights") -> Iterator[Any]:
    if not path.exists():
        raise WeightsError(f"{key}={path} is missing; give an existing file, or train with overwrite=true")
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{key}={path} cannot be read ({error}); is it a complete safetensors file?") from None


def output_names(path: Path) -> list[str]:
    """Names of the outputs (classes) of the network that was saved; none where the file does not say.

    Raises:
        WeightsError: missing or damaged file.
    """
    with _open(path) as file:
        stored = (file.metadata() or {}).get(ABOUT, "{}")
    try:
        names = json.loads(stored).get(OUTPUT_NAMES, [])
    except (ValueError, RecursionError, AttributeError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"weights={path} has {OUTPUT_NAMES} that are no list of names; is it one of this program's?")
    return names


def load_backbone(path: Path, network: nn.Module, prefix: str | None = None) -> LoadReport:
    """Fills the tensors of a network that the file has under the same name and shape, and says which it did not.

    Args:
        path: safetensors file, such as ``model.safetensors`` of a run.
        network: whose other tensors stay as they are.
        prefix: of the part in the network's names that the file is for, such as ``backbone.body.``; None for the
            network's ``backbone_prefix``, or the whole network without one.

    Raises:
        WeightsError: missing or damaged file; not one tensor fits.
    """
    prefix = getattr(network, "backbone_prefix", "") if prefix is None else prefix
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(prefix)}
    found = {f"{prefix}{name}": tensor for name, tensor in read_tensors(path, "backbone").items()}
    check_values(own, found, f"backbone={path}")
    kept = {name: _misfit(tensor, found.get(name)) for name, tensor in own.items()}
    loaded = {name: found[name] for name, reason in kept.items() if not reason}
    if not loaded:
        raise WeightsError(f"backbone={path} has no tensor that fits the network: {_difference(own, found)}")
    network.load_state_dict(loaded, strict=False)
    reasons = {name: reason for name, reason in kept.items() if reason}
    return LoadReport(str(path), list(loaded), reasons, [name for name in found if name not in own])


def _misfit(own: Tensor, found: Tensor | None) -> str:
    """Why a tensor of a file is not loaded; empty where it is."""
    if found is None:
        return "not in the file"
    return "" if found.shape == own.shape else f"{tuple(found.shape)} in the file, {tuple(own.shape)} here"


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
