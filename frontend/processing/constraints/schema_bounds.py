"""Refuses JSON schemas that would keep llguidance busy for minutes.

Owns a walk over a schema that counts patterns and finds long strings. A string that must match
several regular expressions at once needs their intersection, whose size is the product of theirs,
and which is computed while tokens are drawn. Knows nothing else of JSON schema.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from frontend.bounds import MAX_MERGED_PATTERNS, MAX_SCHEMA_STRING_CHARS
from frontend.errors import invalid_field

# Keywords that bring in another schema, and those of which two at one place are put together.
_APPLICATORS = ("$ref", "anyOf", "oneOf")
_EXPRESSIONS = ("pattern", "format", "patternProperties")


@dataclasses.dataclass(slots=True)
class _Counts:
    """Attributes:
    merges: somewhere one value must fit two schemas.
    """

    longest_string: int = 0
    num_patterns: int = 0
    merges: bool = False


def check_schema(schema: Any, field: str) -> None:
    """Refuses a schema that has too long a string, or puts too many expressions together.

    Raises:
        RequestError: INVALID_ARGUMENT.
    """
    counts = _Counts()
    for value in _values(schema):
        if isinstance(value, str):
            counts.longest_string = max(counts.longest_string, len(value))
        elif isinstance(value, dict):
            _count(value, counts)
    if counts.longest_string > MAX_SCHEMA_STRING_CHARS:
        raise invalid_field(
            field,
            f"has a string of {counts.longest_string} characters, at most "
            f"{MAX_SCHEMA_STRING_CHARS} are taken",
        )
    if counts.merges and counts.num_patterns > MAX_MERGED_PATTERNS:
        raise invalid_field(
            field,
            f"puts schemas together (allOf, or $ref, anyOf, oneOf beside another) and has "
            f"{counts.num_patterns} patterns and formats, at most {MAX_MERGED_PATTERNS} are taken "
            "then; leave some out",
        )


def _count(schema: dict[str, Any], counts: _Counts) -> None:
    counts.num_patterns += isinstance(schema.get("pattern"), str)
    counts.num_patterns += isinstance(schema.get("format"), str)
    by_pattern = schema.get("patternProperties")
    counts.num_patterns += len(by_pattern) if isinstance(by_pattern, dict) else 0
    num_applied = sum(name in schema for name in _APPLICATORS)
    has_expression = any(name in schema for name in _EXPRESSIONS)
    counts.merges |= "allOf" in schema or num_applied > 1 or (num_applied == 1 and has_expression)


def _values(value: Any) -> Iterator[Any]:
    """Every value in a JSON value, and every name."""
    left = [value]
    while left:
        each = left.pop()
        yield each
        if isinstance(each, list):
            left += each
        elif isinstance(each, dict):
            left += each.keys()
            left += each.values()
