"""Calls of Llama 3.1 and later: the turn is ``{"name": …, "parameters": {…}}``, or several of these
with semicolons between.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from frontend.processing.tool_calls.call_objects import cut_call, read_call
from frontend.processing.tool_calls.call_reader import Found, TaggedFormat, Tools
from frontend.processing.tool_calls.grammar import CallLanguage, json_call
from frontend.processing.tool_calls.scan import Parsing, Scan
from frontend.processing.tool_calls.tools import Tool

TAG = "<|python_tag|>"


def _parse(scan: Scan, tag: str, tools: Tools) -> Parsing[Found]:
    if tag == "{":
        scan.place = 0
    yield from scan.blanks()
    begin = scan.place
    scan.partial = lambda: cut_call(scan.text[begin:], tools)
    text = yield from scan.object_text()
    call = read_call(text, tools)
    if call is None:
        raise scan.fail()
    return [call]


def _language(tools: Sequence[Tool], tags: Collection[str]) -> CallLanguage:
    return CallLanguage(
        call=[
            json_call(tool, f'{{"name": {json.dumps(tool.name)}, "parameters": ', "}")
            for tool in tools
        ],
        between="; ",
    )


LLAMA_JSON = TaggedFormat(
    name="llama3_json",
    begins=("{", TAG),
    parse=_parse,
    language=_language,
    closers=(";",),
    only_first=True,
    tags=(TAG,),
)
