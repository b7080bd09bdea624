"""A configuration that was stored is data: read within bounds, without references to other values or places."""

from pathlib import Path
from typing import Any

import yaml

from drconv.files import read_bounded

MAX_BYTES = 2**20  # our own have 4 kB
MAX_DEPTH = 16
INTERPOLATION = "${"


def read_stored_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: no mapping; too large or too deep; an alias, a tag or an interpolation (``${...}``), which could
            repeat parts without end, make objects, or read the environment of whoever looks at the file.
        OSError: it cannot be read.
    """
    content = read_bounded(path, MAX_BYTES)
    try:
        loaded = yaml.load(content, _PlainLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    if not isinstance(loaded, dict):
        raise ValueError("no mapping of keys to values")
    _check_strings(loaded)
    return loaded


class _PlainLoader(yaml.SafeLoader):
    """Without anchors, and with a limit on depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError("anchors and aliases are not allowed")
        if self.depth >= MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH}")
        self.depth += 1
        try:
            return super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        finally:
            self.depth -= 1


def _check_strings(value: Any) -> None:
    if isinstance(value, str) and INTERPOLATION in value:
        raise ValueError(f"{value[:60]!r}: a stored configuration has values, not references")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_strings(key)
            _check_strings(item)
    if isinstance(value, list | tuple):
        for item in value:
            _check_strings(item)
