"""Which texts of a model are strings, by the function's schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from frontend.processing.tool_calls.tools import Tool
from frontend.processing.tool_calls.typed_values import TypedArguments

STRING, NULL = {"type": "string"}, {"type": "null"}
ANY = (
    '{"a": 1}', "[1, 2]", "1.10", "-3", "true", "null",
)  # fmt: skip


def typed(schema: Any, *texts: str, **more: Any) -> list[str]:
    """The JSON that stands for each text."""
    root = {"type": "object", "properties": {"a": schema}, **more}
    values = []
    for text in texts:
        arguments = TypedArguments(Tool(name="f", parameters=root, sent={}, field=""))
        arguments.add("a", text)
        whole = arguments.json()
        json.loads(whole)
        values.append(whole.removeprefix('{"a": ').removesuffix("}"))
    return values


@pytest.mark.parametrize(
    ("schema", "texts", "expected"),
    [
        (STRING, ["5", " a\n", "null", '"q"'], ['"5"', '" a\\n"', '"null"', '"\\"q\\""']),
        ({"type": "integer"}, ["5", " 5\n", "five", "True"], ["5", "5", '"five"', '"True"']),
        ({"type": "number"}, ["1.10", "1e999", "NaN", "01"], ["1.10", "1e999", '"NaN"', '"01"']),
        ({"type": "boolean"}, ["true", "True", "False", "1"], ["true", "true", "false", '"1"']),
        ({"type": "object"}, ['{"b": 1.0}', "{'b': 1}"], ['{"b": 1.0}', "\"{'b': 1}\""]),
        ({"type": "array"}, ["[1,  2]", "{}"], ["[1,  2]", '"{}"']),
        (NULL, ["null", "None"], ["null", "null"]),
        ({"type": ["string", "null"]}, ["null", "x"], ["null", '"x"']),
        ({"anyOf": [{"type": "integer"}, STRING]}, ["5", "x"], ["5", '"x"']),
        ({"enum": ["5", "6"]}, ["5"], ['"5"']),
        ({"enum": [5, 6]}, ["5"], ["5"]),
        ({"const": True}, ["True"], ["true"]),
        ({}, ANY, list(ANY)),
        ({}, ["Rome", '"Rome"'], ['"Rome"', '"\\"Rome\\""']),
        (True, ["x", "1"], ['"x"', "1"]),
    ],
)
def test_a_text_has_its_schemas_type(schema: Any, texts: list[str], expected: list[str]) -> None:
    assert typed(schema, *texts) == expected


def test_references_are_followed_and_end() -> None:
    definitions = {"A": STRING, "B": {"$ref": "#/$defs/B"}, "c/d": {"type": "integer"}}
    for name, expected in (("A", '"5"'), ("B", "5"), ("c~1d", "5"), ("none", "5")):
        assert typed({"$ref": f"#/$defs/{name}"}, "5", **{"$defs": definitions}) == [expected]


def test_properties_may_stand_in_a_part_of_the_schema() -> None:
    root = {"allOf": [{"$ref": "#/$defs/X"}], "$defs": {"X": {"properties": {"b": STRING}}}}
    arguments = TypedArguments(Tool(name="f", parameters=root, sent={}, field=""))
    for key in ("b", "é"):
        arguments.add(key, "5")
    assert arguments.json() == '{"b": "5", "é": 5}'


def test_other_properties_have_the_type_of_additional_ones() -> None:
    root = {"type": "object", "additionalProperties": STRING}
    arguments = TypedArguments(Tool(name="f", parameters=root, sent={}, field=""))
    arguments.add("x", "5")
    assert arguments.json() == '{"x": "5"}'
