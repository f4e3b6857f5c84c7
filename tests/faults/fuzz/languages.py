"""JSON schemas, regular expressions and grammars, from bytes: sound, broken and hostile.

Owns their making, small enough that a compiler which takes a second over one has a bug.
"""

from __future__ import annotations

import json
from typing import Any

from tests.faults.fuzz.values import Bytes

_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null", "nothing")
_REGEX_PARTS = (
    "a", "b", "[a-z]", "[^a]", ".", "\\d", "\\w", "\\s", "\\b", "^", "$", "(", ")", "(?:",
    "(?=", "(?<n>",
    "|", "*", "+", "?", "*?", "{2}", "{0,3}", "{2,}", "{99999}", "{3,1}", "[", "]", "\\", "\\1",
    "\\p{L}", "\\x{110000}", "\\ud800", "é", "🙂", "(?i)", "(a*)*", "(a|a)*", "(a+)+$",
    "[\\s\\S]{40}", "\0",
)  # fmt: skip
_GRAMMAR_PARTS = (
    "start: ", "a: ", "A: ", "B: ", " ", "\n", "| ", '"x"', '""', '"a".."z"', "/[a-z]+/",
    "/(/", "/a*/",
    "start ", "a ", "A ", "B ", "( ", ") ", "* ", "+ ", "? ", "~ 3 ", "~ 2..9999 ", "{2,3} ",
    "& ", "~ ",
    "%ignore ", "%import common.INT\n", "%json ", '{"type":"object"}', "<|end|> ", "<[3]> ",
    "<[3-999]> ",
    "[capture] ", "[stop=\"\"]", "[max_tokens=1]", "[lazy]", "%llguidance {}\n", "// c\n",
    "é", "\0", "@a ",
)  # fmt: skip
_SCHEMAS = (
    '{"$ref": "#"}', '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}',
    '{"type": "array", "items": {"$ref": "#"}}', '{"allOf": [{"$ref": "#"}]}',
    '{"$ref": "http://localhost/"}', '{"$ref": "file:///etc/passwd"}', '{"$ref": "#/%zz"}',
    '{"type": "string", "pattern": "(a*)*$"}', '{"enum": []}', '{"const": {"a": [1e400]}}',
    '{"type": "integer", "minimum": 9e99}', '{"type": "number", "multipleOf": 0}',
    '{"minItems": 99999999999, "type": "array"}', '{"maxLength": -1, "type": "string"}',
    "true", "false",
    '{"properties": {"": {"type": "string", "format": "date-time"}}, "required": ["", ""]}',
    '{"type": "string", "maxLength": 100000}', '{"anyOf": [], "oneOf": [{}], "not": {}}',
)  # fmt: skip


def schema_text(data: Bytes) -> str:
    """A JSON schema, or what looks like one."""
    match data.below(4):
        case 0:
            return data.pick(_SCHEMAS)
        case 1:
            return data.json_text()
        case _:
            return data.json_text(_schema(data, 3))


def _schema(data: Bytes, depth: int) -> Any:
    kind = data.pick(_TYPES)
    schema: dict[str, Any] = {"type": kind}
    if data.chance(50):
        schema[data.pick(("enum", "const", "default", "title"))] = data.json(2)
    if data.chance(50):
        names = (
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minimum",
            "maximum",
            "multipleOf",
        )
        schema[data.pick(names)] = data.json(0)
    if data.chance(30):
        schema["pattern"] = regex_text(data)
    if data.chance(30):
        schema["format"] = data.pick(("date", "uuid", "email", "uri", "ipv4", "nothing"))
    if not depth:
        return schema
    if kind == "object":
        own = {data.text(): _schema(data, depth - 1) for _ in range(data.below(4))}
        schema |= {"properties": own, "required": list(own)[: data.below(4)]}
        schema["additionalProperties"] = data.pick((False, True, {"type": "integer"}, 3))
    elif kind == "array":
        schema[data.pick(("items", "prefixItems", "contains"))] = _schema(data, depth - 1)
    if data.chance(60):
        several = [_schema(data, depth - 1) for _ in range(data.below(3))]
        schema[data.pick(("anyOf", "oneOf", "allOf", "not", "if", "$defs"))] = several
    if data.chance(30):
        schema["$ref"] = data.pick(("#", "#/properties/a", "#/$defs/a", "x", ""))
    return schema


def regex_text(data: Bytes) -> str:
    """A regular expression, or what looks like one."""
    if data.below(4) == 0:
        return data.text()
    return "".join(data.pick(_REGEX_PARTS) for _ in range(data.below(12)))


def grammar_text(data: Bytes) -> str:
    """A grammar in Lark's notation, or what looks like one."""
    if data.below(6) == 0:
        return data.text()
    head = "start: " if data.below(4) else ""
    return head + "".join(data.pick(_GRAMMAR_PARTS) for _ in range(data.below(24)))


def tools_json(data: Bytes) -> str:
    """Tools as chat templates take them, or what looks like some."""
    return data.json_text(tools(data)) if data.below(4) else data.json_text()


def tools(data: Bytes) -> list[Any]:
    """Tools in OpenAI's form, of which some lack something."""
    found: list[Any] = []
    for _ in range(data.below(4)):
        function: dict[str, Any] = {"name": data.pick(("f", "g", "", "a" * 257, "é"))}
        if data.below(4):
            function["parameters"] = _schema(data, 2)
        if data.below(3) == 0:
            function["description"] = data.json(1)
        tool = {
            "type": data.pick(("function", "function", "function", "code")),
            "function": function,
        }
        found.append(tool if data.below(8) else data.json(2))
    return found


def schema_object(data: Bytes) -> Any:
    """A schema as a value."""
    if data.below(3) == 0:
        return json.loads(data.pick(_SCHEMAS))
    return _schema(data, 3)
