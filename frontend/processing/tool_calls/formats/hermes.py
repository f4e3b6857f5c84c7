"""Calls as Hermes' and Qwen3's templates teach them: ``<tool_call>{"name": …, "arguments":
{…}}</tool_call>``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from frontend.processing.tool_calls.call_objects import cut_call, read_call
from frontend.processing.tool_calls.call_reader import Found, TaggedFormat, Tools
from frontend.processing.tool_calls.grammar import CallLanguage, json_call
from frontend.processing.tool_calls.scan import NoCallError, Parsing, Scan
from frontend.processing.tool_calls.tools import Tool

BEGIN, END = "<tool_call>", "</tool_call>"


def _parse(scan: Scan, tag: str, tools: Tools) -> Parsing[Found]:
    """A call ends where its JSON object does. Behind the begin tag of what is no call, no other one
    counts before the next end tag, so that a call which is only quoted is not made; but where no
    JSON follows the begin tag, that was a word in a sentence.
    """
    yield from scan.blanks()
    if scan.text[scan.place : scan.place + 1] not in ("{", "[", '"', "<"):
        raise NoCallError(is_word=True)
    scan.skip_to = END
    begin = scan.place
    scan.partial = lambda: cut_call(scan.text[begin:], tools)
    text = yield from scan.object_text()
    call = read_call(text, tools)
    yield from scan.end(END)
    if call is None:
        raise NoCallError()
    return [call]


def _language(tools: Sequence[Tool], tags: Collection[str]) -> CallLanguage:
    return CallLanguage(
        call=[
            json_call(
                tool,
                f'{BEGIN}\n{{"name": {json.dumps(tool.name)}, "arguments": ',
                f"}}\n{END}",
            )
            for tool in tools
        ],
        between="\n",
    )


HERMES = TaggedFormat(
    name="hermes", begins=(BEGIN,), parse=_parse, language=_language, tags=(BEGIN, END)
)
