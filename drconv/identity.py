"""What a run computes, as one hash: the keys of its configuration that decide it. Imports no torch."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

# Keys that may differ between a run and its continuation: they change where and how fast it runs, not what it computes.
# The data are compared by their fingerprint, not by their path. devices and accumulate do change which pictures a batch
# norm sees together; a run may go on with others all the same, and its record says how many there were.
FREE_KEYS = ("overwrite", "outputs", "run", "data.root", "logging", "experiment.note", "task.module")
FREE_RUNTIME = (
    "device",
    "devices",
    "accumulate",
    "workers",
    "threads",
    "timeout",
    "kernel",
    "dry_run",
    "compile",
)

# Words about a row, free since a schema: the hash of a record from before, which is in its file's name, has them. They
# stay in the names of run folders, so that each is found where it is.
FREE_SINCE = ((3, "experiment.tolerance"), (3, "experiment.decisions"))


def select_binding(config: dict[str, Any], schema: int | None = None) -> dict[str, Any]:
    """The keys of a configuration (nested dictionaries) that decide what a run computes: dotted, with values.

    Args:
        config: of a run.
        schema: that the keys are selected by; None for today's.
    """
    later = (key for since, key in FREE_SINCE if schema is None or schema >= since)
    free = (*FREE_KEYS, *later, *(f"runtime.{key}" for key in FREE_RUNTIME))
    return {key: value for key, value in flatten(config).items() if not is_within(key, free)}


def is_within(key: str, sections: Iterable[str]) -> bool:
    """Whether a dotted key is one of the sections or lies in one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def config_hash(binding_keys: dict[str, Any]) -> str:
    """sha256 of the keys that decide what a run computes."""
    return hashlib.sha256(json.dumps(binding_keys, sort_keys=True).encode()).hexdigest()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
