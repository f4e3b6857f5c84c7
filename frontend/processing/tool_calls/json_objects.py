"""Finds the end of a JSON object in text that comes in parts, and the text of its members.

Owns JSON's grammar as far as that needs it. Knows nothing of tool calls.
"""

from __future__ import annotations

import json
import re
from typing import Any

_BLANKS = re.compile(r"[ \t\n\r]*")
_IN_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_WORD_PART = re.compile(r"[-+.0-9A-Za-z]*")
_WORD = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_MARKS = '"{}[],:'
# What may come next, each kind by its first character; w is a number, true, false or null.
_VALUE, _KEY, _KEY_OR_END = '"{[w', '"', '"}'


class ObjectScanner:
    """Reads one JSON object to its end, in parts.

    What stands in a string is not checked: a raw line break there is no JSON, but the object's end
    is known all the same.

    Attributes:
        is_done: the object's last brace was read.
        is_broken: what was read can be no JSON object.
    """

    __slots__ = ("_in_string", "_is_escaped", "_is_key", "_next", "_open", "_word", "is_broken",
                 "is_done")  # fmt: skip

    def __init__(self) -> None:
        self.is_done = self.is_broken = False
        self._open: list[str] = []
        self._next = "{"
        self._in_string = self._is_escaped = self._is_key = False
        self._word = ""

    def feed(self, text: str, place: int = 0) -> int:
        """Reads on from ``place``; returns where it stopped: behind the object's last brace, at
        the first character that cannot be, or at the text's end.
        """
        while place < len(text) and not (self.is_done or self.is_broken):
            if self._in_string:
                place = self._string(text, place)
            elif self._word:
                place = self._rest_of_word(text, place)
            else:
                place = _BLANKS.match(text, place).end()  # type: ignore[union-attr]  # matches ""
                if place < len(text):
                    place += self._take(text[place])
        return place

    def _string(self, text: str, place: int) -> int:
        if self._is_escaped:
            self._is_escaped = False
            return place + 1
        match = _IN_STRING.match(text, place)
        assert match is not None, "it matches the empty text"
        place = match.end()
        if place == len(text):
            return place
        if text[place] == "\\":  # the text's last character
            self._is_escaped = True
        else:
            self._in_string = False
            self._end_value(":" if self._is_key else None)
        return place + 1

    def _rest_of_word(self, text: str, place: int) -> int:
        match = _WORD_PART.match(text, place)
        assert match is not None, "it matches the empty text"
        self._word += match.group()
        if match.end() < len(text):
            self.is_broken = _WORD.fullmatch(self._word) is None
            self._word = ""
            self._end_value()
        return match.end()

    def _end_value(self, follows: str | None = None) -> None:
        self._next = follows or (",}" if self._open[-1] == "{" else ",]")

    def _take(self, char: str) -> int:
        """One character outside strings and words; returns 0 where it cannot be, else 1."""
        kind = char if char in _MARKS else "w"
        if kind not in self._next:
            self.is_broken = True
            return 0
        match kind:
            case "{" | "[":
                self._open.append(kind)
                self._next = _KEY_OR_END if kind == "{" else _VALUE + "]"
            case "}" | "]":
                self._open.pop()
                self.is_done = not self._open
                if self._open:
                    self._end_value()
            case ":":
                self._next = _VALUE
            case ",":
                self._next = _KEY if self._open[-1] == "{" else _VALUE
            case '"':
                self._is_key = self._next in (_KEY, _KEY_OR_END)
                self._in_string = True
            case _:
                self.is_broken = not _WORD_PART.match(char).group()  # type: ignore[union-attr]
                self._word = char
                return int(not self.is_broken)
        return 1


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


# Numbers stay text: only their place matters, and they may be too large for Python.
_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_int=str, parse_float=str)


def members(text: str) -> tuple[dict[str, str], tuple[str, str] | None]:
    """The members of a JSON object that may be cut off: each name and its value's own text.

    Returns:
        The whole members, and the name and text of the one that was cut inside its value, or None.
        Of equal names the last one counts.

    Raises:
        ValueError: the text is no JSON object, nor the beginning of one.
    """
    if not text.startswith("{"):
        raise ValueError("the text does not begin an object")
    found: dict[str, str] = {}
    place = _skip(text, 1)
    while place < len(text) and text[place] != "}":
        try:
            name, place = _DECODER.raw_decode(text, place)
        except ValueError:
            return found, None
        begin = _skip(text, _skip(text, place) + 1)  # behind the colon
        try:
            _, end = _DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError):
            return found, (name, text[begin:]) if text[begin:] else None
        found[name] = text[begin:end]
        place = _skip(text, end)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
    return found, None


def _skip(text: str, place: int) -> int:
    return _BLANKS.match(text, place).end()  # type: ignore[union-attr]  # it matches ""


def is_json_object(text: str) -> bool:
    """Whether a text is one JSON object and nothing else."""
    try:
        return isinstance(json.loads(text, parse_constant=_refuse, parse_int=str), dict)
    except (ValueError, RecursionError):
        return False
