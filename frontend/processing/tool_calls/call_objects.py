"""A call as a JSON object of its name and arguments. The arguments are the model's own text."""

from __future__ import annotations

import json
from collections.abc import Collection

from frontend.processing.tool_calls.json_objects import is_json_object, members
from frontend.processing.tool_calls.scan import ParsedCall


def read_call(text: str, names: Collection[str]) -> ParsedCall | None:
    """The call that a JSON text is; None when it is none."""
    text = text.strip(" \t\r\n")
    if not is_json_object(text):
        return None
    found, _ = members(text)
    name = _string(found.get("name", "")) or ""
    arguments = found.get("arguments", found.get("parameters", "{}"))
    if arguments.startswith('"'):  # JSON in a string, as OpenAI's own calls have it
        arguments = _string(arguments) or ""
    elif arguments == "null":
        arguments = "{}"
    return ParsedCall(name, arguments) if name in names and is_json_object(arguments) else None


def cut_call(text: str, names: Collection[str]) -> list[ParsedCall]:
    """A call that was cut off, with its arguments as far as they came; none before they began."""
    if not text.startswith("{"):
        return []
    found, cut = members(text)
    name = _string(found.get("name", "")) or ""
    if cut is not None and cut[0] in ("arguments", "parameters"):
        found[cut[0]] = cut[1]
    arguments = found.get("arguments", found.get("parameters"))
    return [] if name not in names or arguments is None else [ParsedCall(name, arguments)]


def _string(text: str) -> str | None:
    """The string that a JSON text is; None when it is none, or half of a surrogate pair."""
    if not text.startswith('"'):
        return None
    value: str = json.loads(text)
    return value if value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value) else None
