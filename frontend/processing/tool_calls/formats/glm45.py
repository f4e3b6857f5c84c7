"""Calls of GLM-4.5 and later: ``<tool_call>NAME``, and for each argument
``<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>``, with or without lines' ends between.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from frontend.processing.tool_calls.call_reader import Found, TaggedFormat, Tools
from frontend.processing.tool_calls.grammar import CallLanguage, Matching
from frontend.processing.tool_calls.scan import ParsedCall, Parsing, Scan
from frontend.processing.tool_calls.tools import Tool
from frontend.processing.tool_calls.typed_grammar import argument_parts
from frontend.processing.tool_calls.typed_values import TypedArguments, longest_name

BEGIN, END = "<tool_call>", "</tool_call>"
KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"
_BREAK = Matching("\\n?")


def _parse(scan: Scan, tag: str, tools: Tools) -> Parsing[Found]:
    yield from scan.blanks()
    name, mark = yield from scan.until(KEY, END, limit=longest_name(tools))
    name = name.rstrip()
    if name not in tools:
        scan.skip_to = END if mark == KEY else None
        raise scan.fail()
    scan.skip_to = END
    arguments = TypedArguments(tools[name])
    scan.partial = lambda: [ParsedCall(name, arguments.begun())]
    while mark == KEY:
        key, _ = yield from scan.until(KEY_END)
        yield from scan.blanks()
        yield from scan.need(VALUE)
        value, mark = yield from scan.value(VALUE_END, KEY, END)
        arguments.add(key, value)
    return [ParsedCall(name, arguments.json())]


def _language(tools: Sequence[Tool], tags: Collection[str]) -> CallLanguage:
    """Lines' ends between the tags are for the model to choose: GLM-4.7 writes none."""
    return CallLanguage(
        call=[
            [
                f"{BEGIN}{tool.name}",
                _BREAK,
                *argument_parts(
                    tool, lambda key: [_BREAK, KEY, key, KEY_END, _BREAK, VALUE], VALUE_END
                ),
                _BREAK,
                END,
            ]
            for tool in tools
        ],
        between="\n",
    )


GLM45 = TaggedFormat(
    name="glm45",
    begins=(BEGIN,),
    parse=_parse,
    language=_language,
    tags=(BEGIN, END, KEY, KEY_END, VALUE, VALUE_END),
)
