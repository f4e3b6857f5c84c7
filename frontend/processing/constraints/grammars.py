"""A constraint in llguidance's form: from a JSON schema, a regular expression, a grammar, choices.

Owns the checks of `switchyard.v1.Constraint` that need no compiling. Knows nothing of masks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from llguidance import LLMatcher

from frontend.bounds import (
    MAX_GRAMMAR_CHARS,
    MAX_GRAMMAR_COLONS,
    MAX_GRAMMAR_INTERSECTIONS,
    MAX_GRAMMAR_SCHEMAS,
    MAX_LIBRARY_ERROR_CHARS,
    MAX_REGEX_CHARS,
    MAX_SCHEMA_CHARS,
)
from frontend.errors import invalid_field, too_many
from frontend.processing.constraints.schema_bounds import check_schema
from frontend.processing.constraints.schema_edit import without_unknown_formats
from switchyard.v1 import inference_pb2 as pb

JSON_OBJECT_SCHEMA = '{"type": "object"}'
# What may stand between the parts of a JSON text: with as much as JSON allows, small models never
# get to the end. A space, or a line's end and its indentation, is how people and models write it.
JSON_WHITESPACE = r"\x20|\r?\n[\x20\x09]{0,32}"

_SCHEMAS = "constraint.json_schemas"
_NAME = re.compile("[a-z][a-z0-9_]{0,63}")

# Parts of Lark's notation that may hold "<", and a token's name, which is none of them.
_LARK_PARTS = re.compile(r'"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\])+/|(?:#|//)[^\n]*|(<[^<>\s]+>)')


def compiled_form(constraint: pb.Constraint, field: str, added_ids: Mapping[str, int]) -> str:
    """llguidance's form of a constraint.

    Args:
        field: path of the language's field.
        added_ids: ids of the tokenizer's added tokens, which a grammar may name.

    Raises:
        RequestError: INVALID_ARGUMENT for what is too long, or no JSON.
    """
    if constraint.json_schemas and not constraint.HasField("grammar"):
        raise invalid_field(_SCHEMAS, "is set without a grammar, which alone uses them")
    match constraint.WhichOneof("language"):
        case "json_schema":
            if len(constraint.json_schema) > MAX_SCHEMA_CHARS:
                raise too_many(field, len(constraint.json_schema), MAX_SCHEMA_CHARS, "characters")
            return _schema_grammar(constraint.json_schema, field)
        case "json_object":
            if not constraint.json_object:
                raise invalid_field(field, "is false; set it, or another language, or none")
            return _schema_grammar(JSON_OBJECT_SCHEMA, field)
        case "regex":
            if len(constraint.regex) > MAX_REGEX_CHARS:
                raise too_many(field, len(constraint.regex), MAX_REGEX_CHARS, "characters")
            return str(LLMatcher.grammar_from_regex(constraint.regex))
        case "grammar":
            lark = _lark_grammar(constraint.grammar, field, added_ids)
            # Not by grammar_from_lark, which passes on what is JSON, with schemas that nobody has
            # checked.
            return json.dumps({"grammars": [lark, *_named_schemas(constraint.json_schemas)]})
        case _:
            raise invalid_field(
                "constraint", "names no language; set one of them, or no constraint"
            )


def _named_schemas(schemas: Mapping[str, str]) -> list[dict[str, object]]:
    """llguidance's form of the schemas that a grammar uses as @name."""
    if len(schemas) > MAX_GRAMMAR_SCHEMAS:
        raise too_many(_SCHEMAS, len(schemas), MAX_GRAMMAR_SCHEMAS, "schemas")
    num_chars = sum(map(len, schemas.values()))
    if num_chars > MAX_SCHEMA_CHARS:
        raise too_many(_SCHEMAS, num_chars, MAX_SCHEMA_CHARS, "characters")
    named = []
    for name, text in sorted(schemas.items()):
        if not _NAME.fullmatch(name):
            raise invalid_field(
                _SCHEMAS, "has a name that is not of a-z, 0-9 and _, and does not begin with a-z"
            )
        form = json.loads(_schema_grammar(text, f"{_SCHEMAS}.{name}"))
        named.append({"name": name, "json_schema": form["grammars"][0]["json_schema"]})
    return named


def _lark_grammar(text: str, field: str, added_ids: Mapping[str, int]) -> dict[str, str]:
    if len(text) > MAX_GRAMMAR_CHARS:
        raise too_many(field, len(text), MAX_GRAMMAR_CHARS, "characters")
    if text.count(":") > MAX_GRAMMAR_COLONS:
        raise too_many(field, text.count(":"), MAX_GRAMMAR_COLONS, "colons")
    if text.count("&") > MAX_GRAMMAR_INTERSECTIONS:
        raise too_many(field, text.count("&"), MAX_GRAMMAR_INTERSECTIONS, "signs &")
    if "%json" in text:
        raise invalid_field(field, "has a %json part; send the schema as json_schema")
    # llguidance knows names of special tokens alone, but any token by its id.
    text = _LARK_PARTS.sub(
        lambda part: f"<[{added_ids[part[1]]}]>" if part[1] in added_ids else part[0], text
    )
    return {"lark_grammar": text}


def _schema_grammar(text: str, field: str) -> str:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid_field(field, "is not JSON") from error
    if not isinstance(schema, dict | bool):
        raise invalid_field(field, "is no JSON schema, which is an object or true")
    try:
        schema = without_unknown_formats(schema)
    except RecursionError as error:
        raise invalid_field(field, "is nested too deep; send a flatter schema") from error
    check_schema(schema, field)
    try:
        return str(
            LLMatcher.grammar_from_json_schema(
                json.dumps(schema), defaults={"whitespace_pattern": JSON_WHITESPACE}
            )
        )
    except (ValueError, RecursionError) as error:
        raise invalid_field(field, f"is refused: {brief(str(error))}") from error


def choice_grammar(choices: Sequence[str]) -> str:
    """A grammar in Lark's notation whose language is exactly these texts."""
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def brief(complaint: str) -> str:
    """llguidance's words on one line, without its state."""
    words = complaint.partition("<state>")[0].replace("<non-verbose/>", "")
    return " ".join(words.split())[:MAX_LIBRARY_ERROR_CHARS]
