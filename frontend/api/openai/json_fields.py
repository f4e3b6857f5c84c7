"""Reading a JSON object field by field: types and ranges, with the parameter's name in errors.

Owns what counts as a number, a text or a flag; null is unset and unknown fields are left alone.
Knows no parameter by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from frontend.errors import RequestError, invalid_field

UINT32_MAX = 2**32 - 1


def parse_object(body: bytes) -> Fields:
    """A request's body as fields.

    Raises:
        RequestError: it is no JSON object, or holds text that is no Unicode.
    """
    try:
        values = json.loads(body, parse_constant=_no_constant)
        if b"\\ud" in body or b"\\uD" in body:
            json.dumps(values, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise invalid_field("body", "is not valid JSON; send one object, in UTF-8") from error
    if not isinstance(values, dict):
        raise invalid_field("body", "is not a JSON object; send one")
    return Fields(values)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class Fields:
    """One JSON object.

    Args:
        path: what stands before its fields' names in errors.
    """

    __slots__ = ("_path", "_values")

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values = values
        self._path = path

    def __contains__(self, name: str) -> bool:
        """Whether it is set, to something else than null."""
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        """The value as JSON gave it; None when unset."""
        return self._values.get(name)

    def wrong(self, name: str, message: str) -> RequestError:
        """INVALID_ARGUMENT for one of its fields."""
        return invalid_field(self._path + name, message)

    def text(self, name: str) -> str | None:
        """A string."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, f"is {_kind(value)}, must be a string")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, f"is {_kind(value)}, must be true or false")
        return value

    def number(self, name: str) -> float | None:
        """A finite number."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, f"is {_kind(value)}, must be a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.wrong(name, "is no finite number")
        return number

    def integer(self, name: str, low: int = 0, high: int = UINT32_MAX) -> int | None:
        """An integer in [low, high]; 3.0 is 3."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, f"is {_kind(value)}, must be an integer")
        if not low <= value <= high:
            shown = f"{value:.6g}" if abs(value) < 1 << 128 else "huge"  # a float has a last one
            raise self.wrong(name, f"is {shown}, must be in [{low}, {high}]")
        return value

    def integers(self, name: str) -> list[int]:
        """A list of token ids; empty when unset."""
        value = self._values.get(name)
        if value is None:
            return []
        if not is_ids(value):
            raise self.wrong(name, f"must be a list of integers in [0, {UINT32_MAX}]")
        return list(value)

    def texts(self, name: str) -> list[str]:
        """A string, or a list of strings; empty when unset."""
        value = self._values.get(name)
        if value is None:
            return []
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(name, "must be a string or a list of strings")
        return list(value)

    def child(self, name: str) -> Fields | None:
        """An object's fields."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, f"is {_kind(value)}, must be an object")
        return Fields(value, f"{self._path}{name}.")

    def children(self, name: str) -> list[Fields]:
        """The fields of each object of a list; empty when unset."""
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, f"is {_kind(value)}, must be a list")
        for index, each in enumerate(value):
            if not isinstance(each, dict):
                raise self.wrong(f"{name}[{index}]", f"is {_kind(each)}, must be an object")
        return [Fields(each, f"{self._path}{name}[{i}].") for i, each in enumerate(value)]


def is_ids(value: Any) -> bool:
    """Whether it is a list of what may be token ids."""
    return isinstance(value, list) and all(
        type(each) is int and 0 <= each <= UINT32_MAX for each in value
    )


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
