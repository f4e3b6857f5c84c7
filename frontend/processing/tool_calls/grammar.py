"""The language of calls in a format: a grammar in Lark's notation, and the JSON schemas it uses.

Owns how the parts of a call become a grammar. A tag that is a special token is written by that
token, other text by any tokens. Knows no format.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

from frontend.bounds import (
    MAX_GRAMMAR_CHARS,
    MAX_GRAMMAR_COLONS,
    MAX_GRAMMAR_INTERSECTIONS,
    MAX_GRAMMAR_SCHEMAS,
)
from frontend.processing.constraints.schema_edit import Schema, without_remarks
from frontend.processing.tool_calls.tools import Tool
from switchyard.v1 import inference_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True)
class Json:
    """JSON that fits a schema.

    Attributes:
        field: names the schema in errors.
    """

    schema: Schema
    field: str


@dataclasses.dataclass(frozen=True, slots=True)
class Raw:
    """Any text up to an end mark, and the mark."""

    end: str


@dataclasses.dataclass(frozen=True, slots=True)
class Matching:
    """Text that matches a regular expression, without a slash."""

    regex: str


@dataclasses.dataclass(frozen=True, slots=True)
class OneOf:
    """One of some texts."""

    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Repeated:
    """Parts that may come, once (?) or as often as they like (*)."""

    parts: tuple[Part, ...]
    times: str = "?"


Part = str | Json | Raw | Matching | OneOf | Repeated


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallLanguage:
    """How calls stand in an output.

    Attributes:
        call: the parts of one.
        opening, between, closing: text before the first, between two, and behind the last.
        others: what begins as a call does and is none, in texts where calls may come.
    """

    call: Sequence[Sequence[Part]]
    opening: str = ""
    between: str = ""
    closing: str = ""
    others: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class HeldCalls:
    """What an output of calls is held to.

    Attributes:
        fields: of the constraint's fields, the API's names.
    """

    constraint: pb.Constraint
    fields: Mapping[str, str]


def held_calls(
    language: CallLanguage, token_ids: Mapping[str, int], *, parallel: bool, behind: str = ""
) -> HeldCalls:
    """The constraint whose language are one call or more.

    Args:
        language: of one list of parts a tool.
        token_ids: of the tags that are special tokens.
        parallel: several calls may come.
        behind: the text with which every output begins; the language begins behind it.
    """
    writer = _Writer(token_ids)
    opening = language.opening
    calls = []
    for index, parts in enumerate(language.call):
        writer.add(f"call{index}", writer.expression(parts))
        calls.append(f"call{index}")
    writer.add("call", " | ".join(calls))
    first = "call"
    if behind and not opening.startswith(behind):
        rules = []
        for index, parts in enumerate(language.call):
            text, *others = parts
            assert isinstance(text, str), "a call begins with a tag"
            writer.add(f"rest{index}", writer.expression([text.removeprefix(behind), *others]))
            rules.append(f"rest{index}")
        rules += [writer.expression([text.removeprefix(behind)]) for text in language.others]
        writer.add("rest", " | ".join(rules))
        first = "rest"
    more = f"({writer.expression([language.between])} call)*" if parallel else ""
    opened = writer.expression([opening.removeprefix(behind)])
    start = f"{opened} {first} {more} {writer.expression([language.closing])}"
    return writer.held(start)


def fits(constraint: pb.Constraint) -> bool:
    """Whether the grammar compiler's bounds let a grammar pass."""
    grammar, schemas = constraint.grammar, constraint.json_schemas
    return (
        len(grammar) <= MAX_GRAMMAR_CHARS
        and grammar.count(":") <= MAX_GRAMMAR_COLONS
        and grammar.count("&") <= MAX_GRAMMAR_INTERSECTIONS
        and "%json" not in grammar
        and len(schemas) <= MAX_GRAMMAR_SCHEMAS
    )


class _Writer:
    """Rules and schemas, as they are needed."""

    def __init__(self, token_ids: Mapping[str, int]) -> None:
        self._token_ids = token_ids
        tags = sorted(token_ids, key=len, reverse=True)
        self._tags = re.compile("|".join(map(re.escape, tags)) or "(?!)")
        self._rules: dict[str, str] = {}
        self._ends: dict[str, str] = {}
        self._schemas: dict[str, str] = {}  # names by text
        self._fields: dict[str, str] = {}

    def add(self, name: str, expression: str) -> None:
        """A rule."""
        self._rules[name] = expression

    def held(self, start: str) -> HeldCalls:
        """The grammar that begins with a rule's expression."""
        lines = [f"start: {start}", *(f"{name}: {rule}" for name, rule in self._rules.items())]
        schemas = {name: text for text, name in self._schemas.items()}
        constraint = pb.Constraint(grammar="\n".join(lines), json_schemas=schemas)
        named = {*self._fields.values()}
        field = named.pop() if len(named) == 1 else "tools"
        paths = ("constraint", "constraint.grammar", "constraint.json_schemas")
        return HeldCalls(constraint, {**dict.fromkeys(paths, field), **self._fields})

    def expression(self, parts: Sequence[Part]) -> str:
        """Parts one after the other."""
        return " ".join(filter(None, map(self._part, parts)))

    def _part(self, part: Part) -> str:
        match part:
            case str():
                return self._text(part)
            case Json(schema, field):
                return self._schema(schema, field)
            case Raw(end):
                return self._raw(end)
            case Matching(regex):
                return f"/{regex}/"
            case OneOf(texts):
                return f"({' | '.join(map(self._text, texts))})"
            case Repeated(parts, times):
                return f"({self.expression(parts)}){times}"

    def _text(self, text: str) -> str:
        """Text, with its special tokens as such."""
        written, place = [], 0
        for tag in self._tags.finditer(text):
            written += [_quoted(text[place : tag.start()]), f"<[{self._token_ids[tag[0]]}]>"]
            place = tag.end()
        return " ".join(filter(None, [*written, _quoted(text[place:])]))

    def _schema(self, schema: Schema, field: str) -> str:
        text = json.dumps(without_remarks(schema))
        name = self._schemas.setdefault(text, f"s{len(self._schemas)}")
        self._fields.setdefault(f"constraint.json_schemas.{name}", field)
        return f"@{name}"

    def _raw(self, end: str) -> str:
        if self._tags.match(end):  # a special token is no text, which goes on to it
            return f"/(?s:.*)/ {self._text(end)}"
        if end not in self._ends:
            self._ends[end] = f"raw{len(self._ends)}"
            self.add(f"{self._ends[end]}[suffix={_quoted(end)}]", "/(?s:.*)/")
        return self._ends[end]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def json_call(tool: Tool, before: str, after: str) -> list[Part]:
    """A call whose arguments are JSON."""
    return [before, Json(tool.schema, tool.field), after]
