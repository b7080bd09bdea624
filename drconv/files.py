"""Files that are either whole or untouched."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any


def replace_file(path: Path, content: bytes | str) -> None:
    """Writes under a temporary name, then renames: a crash or a full disk leaves the former file as it was."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_infinities(content: Any) -> Any:
    """JSON has no infinity and no NaN: such numbers become null. A validation loss can be infinite in the first steps,
    when batch norm's running statistics lag behind."""
    if isinstance(content, dict):
        return {key: without_infinities(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_infinities(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
