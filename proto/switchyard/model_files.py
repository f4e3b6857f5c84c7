"""Files of a model folder, read with bounds: both halves of a server are given them by others.

Owns that a file is a regular one of a bounded size, and that JSON is an object. Knows no file's
meaning.
"""

from __future__ import annotations

import json
import math
import reprlib
import stat
from pathlib import Path
from typing import Any

MAX_CONFIG_BYTES = 16 << 20
"""Of config.json and its like; lists of what is not quantized take megabytes of them."""

_MAX_NAME = 200
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60
_SHORT.maxlevel = 2


def shown(value: Any) -> str:
    """A value as an error's line has room for it."""
    return _SHORT.repr(value)


def named(name: str) -> str:
    """A name of somebody's making as an error's line has room for it."""
    return name.encode("unicode_escape").decode()[:_MAX_NAME]


def file_size(path: Path) -> int:
    """Bytes of a regular file, which is not opened: another kind may block whoever does.

    Raises:
        ValueError: one line naming the file, and what it is instead.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "no file")
        raise ValueError(f"{path}: is {kind}; put a regular file there")
    return status.st_size


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The contents of a regular file.

    Raises:
        ValueError: one line naming the file: it is not there, of another kind, or too large.
    """
    size = file_size(path)
    if size > max_bytes:
        raise ValueError(f"{path}: {size} bytes, at most {max_bytes} are read; is it another file?")
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def read_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object in a JSON file, whose numbers are all finite.

    Raises:
        ValueError: one line naming the file, and what is wrong with it.
    """
    value = parse_object(str(path), read_bytes(path, max_bytes))
    if (name := _not_finite(value)) is not None:
        raise ValueError(f"{path}: {name} is no finite number; write one that JSON has")
    return value


def parse_object(source: str, data: bytes) -> dict[str, Any]:
    """The object that JSON in UTF-8 holds.

    Args:
        source: where it stands, for people.

    Raises:
        ValueError: one line naming the source, and what is wrong with it.
    """
    try:
        value = json.loads(data.decode())
    except RecursionError:
        raise ValueError(f"{source}: not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{source}: not valid JSON in UTF-8: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{source}: not a JSON object")
    return value


def _not_finite(value: dict[str, Any]) -> str | None:
    """The name of a number that is infinite or none, at any depth; of the outermost object."""
    for name, inside in value.items():
        left = [inside]
        while left:
            each = left.pop()
            if isinstance(each, dict):
                left += each.values()
            elif isinstance(each, list):
                left += each
            elif isinstance(each, float) and not math.isfinite(each):
                return shown(name)
    return None
