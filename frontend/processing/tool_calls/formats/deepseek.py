"""Calls of DeepSeek-V3 and V3.1: a section of calls, each a name and a JSON object. V3 says what
kind of tool it is before the name, and puts the object in a block of code.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

from frontend.processing.tool_calls.call_reader import Found, TaggedFormat, Tools
from frontend.processing.tool_calls.grammar import CallLanguage, Part, json_call
from frontend.processing.tool_calls.scan import NoCallError, ParsedCall, Parsing, Scan
from frontend.processing.tool_calls.tools import Tool
from frontend.processing.tool_calls.typed_values import longest_name

SECTION, SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
KIND = "function"
BLOCK, BLOCK_END = "```json", "```"


def _parse(scan: Scan, tag: str, tools: Tools, *, has_block: bool) -> Parsing[Found]:
    if tag == SECTION:
        yield from scan.blanks()
        if not (yield from scan.take(BEGIN)):
            raise NoCallError(is_word=True)
    limit = longest_name(tools)
    if has_block:
        yield from scan.until(SEPARATOR, limit=len(KIND) + limit)
        name, _ = yield from scan.until(BLOCK, limit=limit)
    else:
        name, _ = yield from scan.until(SEPARATOR, limit=limit)
    name, scan.skip_to = name.strip(), END
    if name not in tools:
        raise scan.fail()
    yield from scan.blanks()
    begin = scan.place
    scan.partial = lambda: [ParsedCall(name, scan.text[begin:])]
    arguments = yield from scan.json_object()
    scan.partial = lambda: [ParsedCall(name, arguments)]
    if has_block:
        yield from scan.blanks()
        yield from scan.take(BLOCK_END)
    yield from scan.end(END)
    return [ParsedCall(name, arguments)]


def _language(tools: Sequence[Tool], tags: Collection[str], *, has_block: bool) -> CallLanguage:
    def call(tool: Tool) -> list[Part]:
        if has_block:
            before = f"{BEGIN}{KIND}{SEPARATOR}{tool.name}\n{BLOCK}\n"
            return json_call(tool, before, f"\n{BLOCK_END}{END}")
        return json_call(tool, f"{BEGIN}{tool.name}{SEPARATOR}", END)

    return CallLanguage(
        call=[call(tool) for tool in tools],
        opening=SECTION,
        between="\n" if has_block else "",
        closing=SECTION_END,
    )


def _format(name: str, *, has_block: bool) -> TaggedFormat:
    return TaggedFormat(
        name=name,
        begins=(SECTION, BEGIN),
        language=functools.partial(_language, has_block=has_block),
        parse=functools.partial(_parse, has_block=has_block),
        closers=(SECTION_END,),
        tags=(SECTION, SECTION_END, BEGIN, SEPARATOR, END),
    )


DEEPSEEK_V3 = _format("deepseek_v3", has_block=True)
DEEPSEEK_V31 = _format("deepseek_v31", has_block=False)
