"""From bytes to values that are likely to go wrong: what a fuzzer mutates, and hypothesis draws.

Owns the reading of bytes and the pools of numbers, texts and JSON. Knows no message and no target.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")

INTEGERS = (
    0, 1, 2, 3, 5, 16, 20, 21, 63, 64, 65, 128, 256, 400, 415, 416, 417, 1024, 1025, 4096, 4097,
    2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64,
    10**30,
)  # fmt: skip
FLOATS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 1e-5, 9e-6, 1e-3, 1e3, 100.0, 100.1, 1.0000001, 0.9999999,
    5e-324, 1e-45, 1.1754942e-38, 3.4028235e38, 3.5e38, 1.7e308, float("inf"), float("-inf"),
    float("nan"),
)  # fmt: skip
TEXTS = (
    "", "a", "abcdefgh", "fake", "the quick brown fox", "\0", "\n", "\r\n", " ", "\ufeff", "\ufffd",
    "é", "e\u0301", "\ufdd0", "東京", "🙂", "👨‍👩‍👧‍👦", "\u202e", "\U0010ffff", "\x7f", "<|end|>",
    "<|user|>",
    "<tool call>", "</think>", "{{ 7 * 7 }}", "{% for x in y %}", "../../etc/passwd", "%s%n",
    "null",
    "{}", "[]", '"', "\\", "a" * 129, "a" * 257, "é" * 300, " " * 2100, "東" * 5000,
    "x" * 17000,
)  # fmt: skip
# Half of a surrogate pair: JSON can say it, UTF-8 and protobuf cannot.
_JSON_TEXTS = ('"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"\\ud83d\\ude42"')
_JSON_ODD = (
    "NaN", "Infinity", "-Infinity", "1e999", "-0", "1E400", "0.1e-400", "[" * 60 + "]" * 60,
    "[" * 3000, '{"a":' * 1200 + "1" + "}" * 1200, '{"a":1,"a":2}', "9" * 400, "9" * 5000,
    "tru", "",
)  # fmt: skip


class Bytes:
    """Reads values from bytes; behind their end everything is 0, so that every value ends."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        """All bytes are read."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        """The next byte."""
        at, self._at = self._at, self._at + 1
        return self._data[at] if at < len(self._data) else 0

    def below(self, count: int) -> int:
        """A number below ``count``, which is at most 65,536."""
        value = self.byte()
        if count > 256:
            value = value << 8 | self.byte()
        return value % count

    def chance(self, of_256: int) -> bool:
        """True about ``of_256`` times in 256; false behind the end."""
        return 0 < self.byte() <= of_256

    def pick(self, values: Sequence[_T]) -> _T:
        """One of some values."""
        return values[self.below(len(values))]

    def take(self, count: int) -> bytes:
        """The next bytes, as many as there are."""
        at, self._at = self._at, self._at + count
        return self._data[at : at + count]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def integer(self, low: int, high: int) -> int:
        """A number in [low, high]: small, at a bound, or any."""
        match self.below(4):
            case 0:
                value = self.below(8)
            case 1:
                value = self.pick(INTEGERS)
            case 2:
                value = high - self.below(3)
            case _:
                value = int.from_bytes(self.take(8), "little", signed=True)
        if low < 0 and self.below(4) == 3:
            value = -value
        return value if low <= value <= high else low + value % (high - low + 1)

    def real(self) -> float:
        """A number with a point: harmless, special, or any."""
        match self.below(4):
            case 0 | 1:
                return self.below(256) / 128
            case 2:
                return self.pick(FLOATS)
            case _:
                return (self.below(65536) - 32768) / 64

    def text(self) -> str:
        """A text without halves of surrogate pairs."""
        match self.below(4):
            case 0 | 1:
                return self.pick(TEXTS)
            case 2:
                return self.take(self.below(24)).decode(errors="ignore")
            case _:
                return "".join(self.pick(TEXTS[:24]) for _ in range(self.below(6)))

    def json(self, depth: int = 3) -> Any:
        """A value as JSON has them."""
        match self.below(9 if depth else 7):
            case 0:
                return None
            case 1:
                return bool(self.below(2))
            case 2:
                return self.below(100)
            case 3:
                return self.integer(-(2**70), 2**70)
            case 4:
                return self.real()
            case 5 | 6:
                return self.text()
            case 7:
                return [self.json(depth - 1) for _ in range(self.below(4))]
            case _:
                return {self.text(): self.json(depth - 1) for _ in range(self.below(4))}

    def _nested(self) -> str:
        """JSON of any depth: what a parser just takes, something behind it may not."""
        depth = self.below(1100)
        before, behind = self.pick((("[", "]"), ('{"a":', "}"), ('{"items":', "}")))
        return before * depth + "true" + behind * depth

    def json_text(self, value: Any = None) -> str:
        """JSON of a value, or of any, now and then with something in it that is none."""
        text = json.dumps(self.json() if value is None else value)
        if self.chance(40):
            odd = self.pick(_JSON_TEXTS + _JSON_ODD) if self.below(4) else self._nested()
            at = self.below(65536) % (len(text) + 1)
            scalar = next((each for each in ("null", "true", "1", '"a"') if each in text), None)
            if scalar is not None and self.below(2):
                return text.replace(scalar, odd, 1)
            return text[:at] + odd + text[at + self.below(4) :]
        return text
