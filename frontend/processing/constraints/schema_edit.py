"""Rewrites JSON schemas: moves one into another, closes objects, drops what nobody enforces.

Owns where in a schema another schema may stand, and where data does. Knows no tools.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from frontend.errors import invalid_field

Schema = dict[str, Any]

# Keywords whose value is a schema for each name, and those whose value is data.
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DATA = ("const", "enum", "default", "examples", "example")
# Keywords by which references depend on where a schema stands.
_FIXED = ("$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef")
# Keywords whose text is for readers.
_REMARKS = ("title", "description", "$comment")
_COMBINING = ("$ref", "allOf", "anyOf", "oneOf", "not", "if")
# Formats that llguidance enforces; it refuses others, which the standard calls annotations.
_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
)  # fmt: skip


def _rewritten(
    value: Any, rewrite: Callable[[Schema], Schema], data: Collection[str] = _DATA
) -> Any:
    """A copy in which every schema is what ``rewrite`` makes of it, the inner ones first.

    Args:
        data: keywords whose values are left as they are.
    """
    if isinstance(value, list):
        return [_rewritten(each, rewrite, data) for each in value]
    if not isinstance(value, dict):
        return value
    copy = {}
    for key, inner in value.items():
        if key in data:
            copy[key] = inner
        elif key in _BY_NAME and isinstance(inner, dict):
            copy[key] = {name: _rewritten(each, rewrite, data) for name, each in inner.items()}
        else:
            copy[key] = _rewritten(inner, rewrite, data)
    return rewrite(copy)


def moved(schema: Schema, pointer: str, field: str) -> Schema:
    """The schema for a place inside another one: its references lead to where it stands then.

    Args:
        pointer: the place, such as ``#/$defs/a``.
        field: names the schema in errors.

    Raises:
        RequestError: INVALID_ARGUMENT, the schema has a keyword that cannot be moved.
    """
    base = str(schema.get("$id", "")).removesuffix("#")
    own = {key: value for key, value in schema.items() if key not in ("$id", "$schema")}

    def rewrite(part: Schema) -> Schema:
        fixed = next((key for key in _FIXED if key in part), None)
        if fixed is not None:
            raise invalid_field(
                field, f"has {fixed}, which this server cannot put among other tools; use $defs"
            )
        target = part.get("$ref")
        if not isinstance(target, str):
            return part
        document, _, place = target.partition("#")
        if not document or document == base:
            target = f"#{place}"
        if target == "#" or target.startswith("#/"):
            target = pointer + target[1:]
        return {**part, "$ref": target}

    moved_schema: Schema = _rewritten(own, rewrite)
    return moved_schema


def closed(schema: Schema) -> Schema:
    """The schema with ``additionalProperties: false`` for objects that do not say, as OpenAI has
    it where a schema is ``strict``. Objects that other schemas are combined with stay open.
    """

    def rewrite(part: Schema) -> Schema:
        is_object = part.get("type") == "object" or "properties" in part
        says = "additionalProperties" in part or any(key in part for key in _COMBINING)
        return {**part, "additionalProperties": False} if is_object and not says else part

    closed_schema: Schema = _rewritten(schema, rewrite, (*_DATA, "allOf"))
    return closed_schema


def without_unknown_formats(schema: Any) -> Any:
    """The schema without values of ``format`` that nobody enforces."""

    def rewrite(part: Schema) -> Schema:
        word = part.get("format")
        is_known = not isinstance(word, str) or word in _FORMATS
        return part if is_known else {key: each for key, each in part.items() if key != "format"}

    return _rewritten(schema, rewrite)


def without_remarks(schema: Schema) -> Schema:
    """The schema without titles, descriptions and comments, which are often most of it."""

    def rewrite(part: Schema) -> Schema:
        return {
            key: each
            for key, each in part.items()
            if key not in _REMARKS or not isinstance(each, str)
        }

    bare: Schema = _rewritten(schema, rewrite)
    return bare
