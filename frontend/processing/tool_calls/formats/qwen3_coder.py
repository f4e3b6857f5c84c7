"""Calls of Qwen3-Coder and Qwen3.5: ``<tool_call>``, ``<function=NAME>``, and for each argument
``<parameter=KEY>``, its value on lines of its own, ``</parameter>``.

The models leave the outer tags out at times.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from frontend.processing.tool_calls.call_reader import Found, TaggedFormat, Tools
from frontend.processing.tool_calls.grammar import CallLanguage
from frontend.processing.tool_calls.scan import NoCallError, ParsedCall, Parsing, Scan
from frontend.processing.tool_calls.tools import Tool
from frontend.processing.tool_calls.typed_grammar import argument_parts
from frontend.processing.tool_calls.typed_values import TypedArguments, longest_name

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"


def _parse(scan: Scan, tag: str, tools: Tools) -> Parsing[Found]:
    if tag == BEGIN:
        yield from scan.blanks()
        if not (yield from scan.take(FUNCTION)):
            raise NoCallError(is_word=True)
    name, _ = yield from scan.until(">", limit=longest_name(tools))
    scan.skip_to = END if tag == BEGIN else FUNCTION_END
    if name not in tools:
        raise scan.fail()
    arguments = TypedArguments(tools[name])
    scan.partial = lambda: [ParsedCall(name, arguments.begun())]
    yield from scan.blanks()
    mark = yield from scan.take(PARAMETER, FUNCTION_END)
    while mark == PARAMETER:
        key, _ = yield from scan.until(">")
        value, mark = yield from scan.value(PARAMETER_END, PARAMETER, FUNCTION_END)
        arguments.add(key, value.removeprefix("\n").removesuffix("\n"))
    if not mark:
        raise scan.fail()
    return [ParsedCall(name, arguments.json())]


def _language(tools: Sequence[Tool], tags: Collection[str]) -> CallLanguage:
    return CallLanguage(
        call=[
            [
                f"{BEGIN}\n{FUNCTION}{tool.name}>\n",
                *argument_parts(tool, lambda key: [PARAMETER, key, ">\n"], f"\n{PARAMETER_END}\n"),
                f"{FUNCTION_END}\n{END}",
            ]
            for tool in tools
        ],
        between="\n",
    )


QWEN3_CODER = TaggedFormat(
    name="qwen3_coder",
    begins=(BEGIN, FUNCTION),
    parse=_parse,
    language=_language,
    closers=(END,),
    tags=(BEGIN, END),
)
