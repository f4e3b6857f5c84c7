"""Whole numbers with a suffix, by vLLM's rule: 32k is 32,000 and 32K is 32,768."""

from __future__ import annotations

import re
from fractions import Fraction

_FACTORS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
_SIZE = re.compile(rf"(\d+(?:\.\d+)?)([{''.join(_FACTORS)}])")


def size(text: str) -> int:
    """The number that a text means; 1.5k is 1,500.

    Raises:
        ValueError: it is none, or no whole one.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        return int(text)
    value = Fraction(found[1]) * _FACTORS[found[2]]
    if value.denominator != 1:
        raise ValueError(f"{text} is no whole number")
    return int(value)
