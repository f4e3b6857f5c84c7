"""Calls of Llama 3.1 and later: the turn is ``{"name": …, "parameters": {…}}``, or several of these
with semicolons between.
"""

from __future__ import annotations

from frontend.processing.tool_calls.call_objects import read_call
from frontend.processing.tool_calls.call_reader import Found, TaggedFormat, Tools
from frontend.processing.tool_calls.scan import Parsing, Scan

TAG = "<|python_tag|>"


def _parse(scan: Scan, tag: str, tools: Tools) -> Parsing[Found]:
    if tag == "{":
        scan.place = 0
    yield from scan.blanks()
    text = yield from scan.object_text()
    call = read_call(text, tools)
    if call is None:
        raise scan.fail()
    return [call]


LLAMA_JSON = TaggedFormat(
    name="llama3_json",
    begins=("{", TAG),
    parse=_parse,
    closers=(";",),
    only_first=True,
    tags=(TAG,),
)
