"""Calls of Kimi-K2: a section of calls, each an id, ``functions.NAME:NUMBER``, and a JSON object.
The template shows results under these ids.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from frontend.processing.tool_calls.call_reader import Found, TaggedFormat, Tools
from frontend.processing.tool_calls.grammar import CallLanguage, Matching, json_call
from frontend.processing.tool_calls.scan import NoCallError, ParsedCall, Parsing, Scan
from frontend.processing.tool_calls.tools import Tool
from frontend.processing.tool_calls.typed_values import longest_name

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
BEGIN, ARGUMENTS, END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_ID = re.compile(r"(?:functions\.)?(.+):(\d+)", re.DOTALL)
_MORE_CHARS = 24  # that an id has beside the name


def _parse(scan: Scan, tag: str, tools: Tools) -> Parsing[Found]:
    if tag == SECTION:
        yield from scan.blanks()
        if not (yield from scan.take(BEGIN)):
            raise NoCallError(is_word=True)
    said, _ = yield from scan.until(ARGUMENTS, limit=longest_name(tools) + _MORE_CHARS)
    scan.skip_to = END
    call_id = said.strip()
    found = _ID.fullmatch(call_id)
    if found is None or found[1] not in tools:
        raise scan.fail()
    yield from scan.blanks()
    if (yield from scan.take(END)):
        return [ParsedCall(found[1], "{}", call_id)]
    begin = scan.place
    scan.partial = lambda: [ParsedCall(found[1], scan.text[begin:], call_id)]
    arguments = yield from scan.json_object()
    scan.partial = lambda: [ParsedCall(found[1], arguments, call_id)]
    yield from scan.end(END)
    return [ParsedCall(found[1], arguments, call_id)]


def _language(tools: Sequence[Tool], tags: Collection[str]) -> CallLanguage:
    return CallLanguage(
        call=[
            [
                f"{BEGIN}functions.{tool.name}:",
                Matching("[0-9]{1,4}"),
                *json_call(tool, ARGUMENTS, END),
            ]
            for tool in tools
        ],
        opening=SECTION,
        closing=SECTION_END,
    )


KIMI_K2 = TaggedFormat(
    name="kimi_k2",
    begins=(SECTION, BEGIN),
    parse=_parse,
    language=_language,
    closers=(SECTION_END,),
    tags=(SECTION, SECTION_END, BEGIN, ARGUMENTS, END),
)
