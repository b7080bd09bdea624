"""What a task gave, held against ``drconv.interfaces``: a breach is one line, before it spoils a log or a record."""

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from drconv.errors import TaskError
from drconv.interfaces import Dataset, Fingerprint, Outputs

# Names in the entries of metrics.jsonl that the engine gives itself.
OF_ENTRIES = ("step", "split")
OF_WATCH = {"regions", "gradients"}
OF_STEPS = (
    *(*OF_ENTRIES, "loss", "lr", "grad_norm", "images_per_second", "data_wait", "memory_gib"),
    *OF_WATCH,
)


def check_outputs(outputs: Any) -> Outputs:
    """What ``forward`` gave.

    Raises:
        TaskError: no ``Outputs``; no loss; a value that is no scalar, or a count that is not whole; a loss without
            gradient; a name that is given twice or that the engine uses.
    """
    if not isinstance(outputs, Outputs):
        raise TaskError(f"forward() of the task gave {_kind(outputs)}, and has to give drconv.interfaces.Outputs")
    if not outputs.losses:
        raise TaskError("forward() of the task gave no loss; Outputs.losses needs one or more")
    _check("loss", outputs.losses, lambda value: isinstance(value, Tensor) and value.is_floating_point())
    _check("scalar", outputs.scalars, lambda value: isinstance(value, Tensor | int | float))
    _check("count", outputs.counts, lambda value: isinstance(value, Tensor | int) and not _is_fractional(value))
    logged = [*(outputs.losses if len(outputs.losses) > 1 else ()), *outputs.scalars, *outputs.counts]
    for name in logged:
        if name in OF_STEPS or logged.count(name) > 1:
            raise TaskError(
                f"forward() of the task calls a value {name!r}, which the log has already; choose another name"
            )
    if not outputs.loss.requires_grad:
        raise TaskError("the loss of the task depends on no trained parameter; is something detached or frozen?")
    return outputs


def check_watch(watch: Any) -> AbstractContextManager[dict[str, Any]]:
    """What ``watch`` gave; None watches nothing.

    Raises:
        TaskError: something that is no context manager.
    """
    if watch is None:
        return nullcontext({})
    if not isinstance(watch, AbstractContextManager):
        raise TaskError(f"watch() of the task gave {_kind(watch)}, and has to give a context manager of a dictionary")
    return watch


def check_watched(watched: Any) -> dict[str, Any]:
    """What the context manager of ``watch`` gave to the log.

    Raises:
        TaskError: no dictionary by name, or a name that the log has already.
    """
    if not isinstance(watched, dict) or not all(isinstance(name, str) for name in watched):
        raise TaskError(f"what watch() of the task yields is {_kind(watched)}, and has to be a dictionary by name")
    if taken := sorted(set(watched) & (set(OF_STEPS) - OF_WATCH)):
        raise TaskError(f"watch() of the task calls a value {taken[0]!r}, which the log has already; take another name")
    return watched


def _check(what: str, values: Any, fits: Callable[[Any], bool]) -> None:
    if not isinstance(values, dict):
        raise TaskError(f"Outputs of the task hold {_kind(values)}, and need a dictionary of each {what} by name")
    for name, value in values.items():
        if not fits(value) or (isinstance(value, Tensor) and value.ndim):
            wanted = {"loss": "a tensor without dimensions", "count": "a whole number"}.get(what, "a number")
            raise TaskError(f"the {what} {name!r} of the task is {_kind(value)}, and has to be {wanted}")


def _is_fractional(value: Tensor | int) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def check_same_names(here: Iterable[str], before: Iterable[str]) -> None:
    """Losses and scalars are averaged, so that each has to be there for every batch.

    Raises:
        TaskError: they differ.
    """
    if differing := set(here) ^ set(before):
        raise TaskError(
            f"forward() of the task gives {', '.join(sorted(differing))} for some batches only; losses and scalars are "
            f"means over all, so give each of them every time, or make it a count"
        )


def check_metrics(computed: Any, name: str) -> dict[str, float]:
    """What ``compute`` gave for an evaluation set, as Python's numbers.

    Raises:
        TaskError: no dictionary of numbers, or a name that the engine uses.
    """
    if not isinstance(computed, dict):
        raise TaskError(f"compute() of the metric of {name} gave {_kind(computed)}, and has to give numbers by name")
    for key in computed:
        if not isinstance(key, str) or not key or key in OF_ENTRIES:
            raise TaskError(f"compute() of the metric of {name} calls a number {key!r}; choose another name")
    return {key: _number(value, f"{name}/{key}") for key, value in computed.items()}


def _number(value: Any, name: str) -> float:
    try:
        plain = value.item() if hasattr(value, "item") else value  # of torch and NumPy
        if isinstance(plain, int | float):
            float(plain)
            return int(plain) if isinstance(plain, bool) else plain
    except (ValueError, RuntimeError, OverflowError):
        pass
    raise TaskError(f"the metric {name} is {_kind(value)}, and has to be a number")


def check_evaluation_sets(sets: Any) -> dict[str, Dataset]:
    """What ``evaluation_sets`` gave.

    Raises:
        TaskError: no data sets by name, or a name that the log or the record uses.
    """
    if not isinstance(sets, dict) or not sets:
        raise TaskError(f"evaluation_sets() of the task gave {_kind(sets)}, and has to give one or more by name")
    for name, dataset in sets.items():
        if not isinstance(name, str) or not name or "/" in name or name == "train" or name.endswith("_ema"):
            raise TaskError(f"an evaluation set cannot be called {name!r}: take a name without /, not train, not *_ema")
        check_samples(dataset, name)
    return sets


def check_samples(dataset: Dataset, name: str) -> None:
    """Raises a TaskError where a data set is empty."""
    if len(dataset) < 1:
        raise TaskError(f"the data set {name} has no sample; check data.root, data.holdout and data.fraction")


def check_fingerprint(fingerprint: Any, name: str) -> Fingerprint:
    """What identifies data, which states and records keep.

    Raises:
        TaskError: something that does not come back from a file as it was, such as NaN.
    """
    try:
        if isinstance(fingerprint, dict):
            json.dumps(fingerprint, allow_nan=False)
            return fingerprint
        reason = f"it is {_kind(fingerprint)}"
    except (TypeError, ValueError) as error:
        reason = str(error)
    raise TaskError(f"fingerprint() of {name} has to be a dictionary of texts, whole or finite numbers: {reason}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"{value!r}"[:60] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def as_mean(value: Tensor | float, device: torch.device) -> Tensor:
    """A loss or scalar for sums over many steps: half precision would lose them."""
    if not isinstance(value, Tensor):
        return torch.tensor(float(value), device=device)
    value = value.detach().to(device)
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def as_count(value: Tensor | int, device: torch.device) -> Tensor:
    """A count for sums over many steps: small types would run over."""
    return torch.as_tensor(value).detach().to(device, torch.int64)
