"""Calls of Mistral's models: ``[TOOL_CALLS]`` and a JSON list of calls, or, of newer models, the
tag and ``NAME[ARGS]{…}`` for each. Their templates take ids of nine letters and digits alone.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
import string
from collections.abc import Collection, Sequence

from frontend.processing.tool_calls.call_objects import cut_call, read_call
from frontend.processing.tool_calls.call_reader import Found, TaggedFormat, Tools
from frontend.processing.tool_calls.grammar import CallLanguage, json_call
from frontend.processing.tool_calls.json_objects import members
from frontend.processing.tool_calls.scan import ParsedCall, Parsing, Scan
from frontend.processing.tool_calls.tools import Tool
from frontend.processing.tool_calls.typed_values import longest_name

BEGIN, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_ALPHABET = string.ascii_letters + string.digits
_IDS = re.compile("[A-Za-z0-9]{9}")


def _parse(scan: Scan, tag: str, tools: Tools) -> Parsing[Found]:
    yield from scan.blanks()
    if (yield from scan.take("[")):
        return (yield from _list(scan, tools))
    name, mark = yield from scan.until(ID, ARGUMENTS, "{", limit=longest_name(tools))
    call_id = ""
    if mark == ID:
        call_id, mark = yield from scan.until(ARGUMENTS, "{")
    if mark == "{":
        scan.place -= 1
    if name.strip() not in tools:
        raise scan.fail()
    yield from scan.blanks()
    begin = scan.place
    scan.partial = lambda: [ParsedCall(name.strip(), scan.text[begin:], _call_id(call_id))]
    arguments = yield from scan.json_object()
    return [ParsedCall(name.strip(), arguments, _call_id(call_id))]


def _list(scan: Scan, tools: Tools) -> Parsing[Found]:
    found: list[ParsedCall | str] = []
    while True:
        yield from scan.blanks()
        begin = scan.place
        scan.partial = functools.partial(_cut, scan, begin, tools, found)
        text = yield from scan.object_text()
        call = read_call(text, tools)
        found.append(text if call is None else ParsedCall(call.name, call.arguments, _id_in(text)))
        scan.partial = functools.partial(_cut, scan, len(scan.text), tools, found)
        yield from scan.blanks()
        if not (yield from scan.take(",")):
            yield from scan.end("]")
            return found


def _cut(scan: Scan, begin: int, tools: Tools, found: Found) -> list[ParsedCall]:
    last = cut_call(scan.text[begin:], tools)
    told = [each for each in found if isinstance(each, ParsedCall)]
    return told + [ParsedCall(call.name, call.arguments, _call_id("")) for call in last]


def _id_in(text: str) -> str:
    said = members(text)[0].get("id", "")
    return _call_id(json.loads(said) if said.startswith('"') else "")


def _call_id(said: str) -> str:
    """The id that the model gave, or another that the template takes."""
    return said if _IDS.fullmatch(said) else "".join(secrets.choice(_ALPHABET) for _ in range(9))


def _language(tools: Sequence[Tool], tags: Collection[str]) -> CallLanguage:
    """The newer form where its second tag is a token."""
    if ARGUMENTS in tags:
        calls = [json_call(tool, f"{BEGIN}{tool.name}{ARGUMENTS}", "") for tool in tools]
        return CallLanguage(call=calls)
    return CallLanguage(
        call=[
            json_call(tool, f'{{"name": {json.dumps(tool.name)}, "arguments": ', "}")
            for tool in tools
        ],
        opening=f"{BEGIN}[",
        between=", ",
        closing="]",
    )


MISTRAL = TaggedFormat(
    name="mistral",
    begins=(BEGIN,),
    parse=_parse,
    language=_language,
    tags=(BEGIN, ID, ARGUMENTS),
)
