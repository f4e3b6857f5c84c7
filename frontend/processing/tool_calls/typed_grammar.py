"""The language of arguments that a model writes as texts without quotes; see `typed_values`.

Owns which arguments come in which order: those that the schema names, in its order; where it names
none, any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from frontend.processing.constraints.schema_edit import Schema, moved
from frontend.processing.tool_calls.grammar import Json, Matching, OneOf, Part, Raw, Repeated
from frontend.processing.tool_calls.tools import Tool
from frontend.processing.tool_calls.typed_values import types_of

Around = Callable[[str | Matching], list[Part]]
"""What stands before a value, given the argument's name."""


def argument_parts(tool: Tool, before: Around, end: str) -> list[Part]:
    """The arguments of one call.

    Args:
        end: what stands behind each value.
    """
    root = tool.schema
    properties = root.get("properties")
    if not isinstance(properties, dict):
        if root.get("additionalProperties") is False:
            return []
        return [Repeated((*before(Matching('[^<>"\\n]+')), Raw(end)), "*")]
    listed = root.get("required")
    required = listed if isinstance(listed, list) else []
    parts: list[Part] = []
    for key, schema in properties.items():
        argument = [*before(key), *_value(tool, key, schema, end)]
        parts += argument if key in required else [Repeated(tuple(argument))]
    return parts


def _value(tool: Tool, key: str, schema: Any, end: str) -> list[Part]:
    types = types_of(schema, tool.parameters)
    if types and "string" not in types:
        return [Json(_alone(tool, key, schema), tool.field), end]
    values = schema.get("enum") if isinstance(schema, dict) else None
    if types == {"string"} and isinstance(values, list):
        return [OneOf(tuple(map(str, values))), end]
    return [Raw(end)]


def _alone(tool: Tool, key: str, schema: Schema) -> Schema:
    """The schema of one argument; with the others where it may refer to them."""
    if '"$ref"' not in repr(schema).replace("'", '"'):
        return schema
    place = key.replace("~", "~0").replace("/", "~1")
    return {
        "$defs": {"all": moved(tool.schema, "#/$defs/all", tool.field)},
        "$ref": f"#/$defs/all/properties/{place}",
    }
