"""Arguments that a model writes as texts without quotes, typed by the function's schema.

Owns which text is a string: one whose schema says string, or nothing that fits. Of the others the
model's own text stays, where it is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from frontend.processing.tool_calls.tools import Tool

# What Python writes for JSON's words, as templates do that turn values to strings.
_PYTHONS_WORDS = {"True": "true", "False": "false", "None": "null"}
_ALL = frozenset(("string", "number", "boolean", "object", "array", "null"))
_MAX_REFERENCES = 16


def longest_name(tools: Collection[str]) -> int:
    """Characters of the longest name, and some blanks."""
    return max(map(len, tools)) + 8


class TypedArguments:
    """The arguments of one call, one after the other."""

    def __init__(self, tool: Tool) -> None:
        self._root: Mapping[str, Any] = tool.parameters
        self._members: list[str] = []

    def add(self, key: str, text: str) -> None:
        """Go on with an argument."""
        value = _value(text, types_of(self._schema_of(key), self._root) or _ALL)
        self._members.append(f"{json.dumps(key, ensure_ascii=False)}: {value}")

    def json(self) -> str:
        """All of them, as a JSON object."""
        return f"{self.begun()}}}"

    def begun(self) -> str:
        """The beginning of a JSON object, which more may follow."""
        return "{" + ", ".join(self._members)

    def _schema_of(self, key: str) -> Any:
        for schema in _schemas(self._root, self._root):
            properties = schema.get("properties")
            if isinstance(properties, dict) and key in properties:
                return properties[key]
        return self._root.get("additionalProperties", {})


def _value(text: str, types: frozenset[str]) -> str:
    """JSON of a text that is one of some types."""
    bare = text.strip()
    bare = bare if "string" in types else _PYTHONS_WORDS.get(bare, bare)
    if types != {"string"} and _type_of(bare) in types - {"string"}:
        return bare
    return json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _type_of(text: str) -> str:
    """The type of a JSON text, a string's and that of no JSON being string."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_int=float)
    except (ValueError, RecursionError):
        return "string"
    match value:
        case bool():
            return "boolean"
        case float():
            return "number"
        case None:
            return "null"
        case dict():
            return "object"
        case list():
            return "array"
        case _:
            return "string"


def _schemas(schema: Any, root: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A schema and those that it is put together of."""
    if not isinstance(schema, dict) or depth > _MAX_REFERENCES:
        return
    yield schema
    reference = schema.get("$ref")
    if isinstance(reference, str):
        yield from _schemas(_target(reference, root), root, depth + 1)
    for word in ("anyOf", "oneOf", "allOf"):
        listed = schema.get(word)
        for each in listed if isinstance(listed, list) else ():
            yield from _schemas(each, root, depth + 1)


def _target(reference: str, root: Mapping[str, Any]) -> Any:
    """What a reference within a schema leads to; None where it leads nowhere."""
    if not reference.startswith("#"):
        return None
    value: Any = root
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        value = value.get(name) if isinstance(value, dict) else None
    return value


def types_of(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """Types of the values that a schema may take; none where it does not say.

    Args:
        root: that references lead into.
    """
    return frozenset(_types(schema, root))


def _types(schema: Any, root: Mapping[str, Any]) -> Iterator[str]:
    """Types of the values that a schema may take, as far as it says; integers are numbers."""
    for each in _schemas(schema, root):
        named = each.get("type")
        for name in named if isinstance(named, list) else [named]:
            if isinstance(name, str):
                yield "number" if name == "integer" else name
        values = each.get("enum")
        listed = values if isinstance(values, list) else []
        for value in [*listed, each["const"]] if "const" in each else listed:
            yield _type_of(json.dumps(value))
