"""Calls of MiniMax-M2: between ``<minimax:tool_call>`` tags ``<invoke name="NAME">``, and for each
argument ``<parameter name="KEY">VALUE</parameter>``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from frontend.processing.tool_calls.call_reader import Found, TaggedFormat, Tools
from frontend.processing.tool_calls.grammar import CallLanguage
from frontend.processing.tool_calls.scan import NoCallError, ParsedCall, Parsing, Scan
from frontend.processing.tool_calls.tools import Tool
from frontend.processing.tool_calls.typed_grammar import argument_parts
from frontend.processing.tool_calls.typed_values import TypedArguments, longest_name

BEGIN, END = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE, INVOKE_END = '<invoke name="', "</invoke>"
PARAMETER, PARAMETER_END = '<parameter name="', "</parameter>"


def _parse(scan: Scan, tag: str, tools: Tools) -> Parsing[Found]:
    if tag == BEGIN:
        yield from scan.blanks()
        if not (yield from scan.take(INVOKE)):
            raise NoCallError(is_word=True)
    name, _ = yield from scan.until('">', limit=longest_name(tools))
    scan.skip_to = INVOKE_END
    if name not in tools:
        raise scan.fail()
    arguments = TypedArguments(tools[name])
    scan.partial = lambda: [ParsedCall(name, arguments.begun())]
    yield from scan.blanks()
    mark = yield from scan.take(PARAMETER, INVOKE_END)
    while mark == PARAMETER:
        key, _ = yield from scan.until('">')
        value, mark = yield from scan.value(PARAMETER_END, PARAMETER, INVOKE_END)
        arguments.add(key, value)
    if not mark:
        raise scan.fail()
    return [ParsedCall(name, arguments.json())]


def _language(tools: Sequence[Tool], tags: Collection[str]) -> CallLanguage:
    return CallLanguage(
        call=[
            [
                f'{INVOKE}{tool.name}">\n',
                *argument_parts(tool, lambda key: [PARAMETER, key, '">'], f"{PARAMETER_END}\n"),
                f"{INVOKE_END}\n",
            ]
            for tool in tools
        ],
        opening=f"{BEGIN}\n",
        closing=END,
    )


MINIMAX_M2 = TaggedFormat(
    name="minimax_m2",
    begins=(BEGIN, INVOKE),
    parse=_parse,
    language=_language,
    closers=(END,),
    tags=(BEGIN, END),
)
