"""Calls of gpt-oss models: messages ``<|channel|>commentary to=functions.NAME <|constrain|>json
<|message|>{…}<|call|>``, which end the turn.

Who reads the envelope (`processing/thoughts/messages.py`) leaves nothing but calls of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from frontend.processing.thoughts.envelope import (
    CALL,
    CHANNEL,
    END,
    FINAL,
    MESSAGE,
    PREAMBLE,
    ROLE,
    START,
    THOUGHTS,
)
from frontend.processing.tool_calls.call_reader import Found, TaggedFormat, Tools
from frontend.processing.tool_calls.grammar import CallLanguage, json_call
from frontend.processing.tool_calls.scan import ParsedCall, Parsing, Scan
from frontend.processing.tool_calls.tools import Tool
from frontend.processing.tool_calls.typed_values import longest_name

CONSTRAIN = "<|constrain|>"
RECIPIENT = "to=functions."
_MORE_CHARS = 64  # that a header has beside the name


def _parse(scan: Scan, tag: str, tools: Tools) -> Parsing[Found]:
    header, _ = yield from scan.until(MESSAGE, limit=longest_name(tools) + _MORE_CHARS)
    scan.skip_to = CALL
    channel, *words = header.replace(CONSTRAIN, " ").split() or [""]
    names = [word.removeprefix(RECIPIENT) for word in words if word.startswith(RECIPIENT)]
    if channel not in (PREAMBLE, THOUGHTS) or len(names) != 1 or names[0] not in tools:
        raise scan.fail()
    yield from scan.blanks()
    begin = scan.place
    scan.partial = lambda: [ParsedCall(names[0], scan.text[begin:])]
    return [ParsedCall(names[0], (yield from scan.json_object()))]


def _language(tools: Sequence[Tool], tags: Collection[str]) -> CallLanguage:
    return CallLanguage(
        call=[
            json_call(
                tool, f"{CHANNEL}{PREAMBLE} {RECIPIENT}{tool.name} {CONSTRAIN}json{MESSAGE}", CALL
            )
            for tool in tools
        ],
        between=f"{START}{ROLE}",
        others=[f"{CHANNEL}{channel}{MESSAGE}" for channel in (THOUGHTS, PREAMBLE, FINAL)],
    )


HARMONY = TaggedFormat(
    name="harmony",
    begins=(CHANNEL,),
    parse=_parse,
    language=_language,
    closers=(CALL, END, f"{START}{ROLE}"),
    tags=(START, CHANNEL, CONSTRAIN, MESSAGE, CALL, END),
)
