"""Turns as templates of gpt-oss take them: thoughts are 'thinking', and a turn has one call.

Beside a call these templates show one text, the thoughts or the content, and refuse both. Of
several calls in a turn they show the first.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from frontend.processing.chat.conversation import Conversation, Turn

THOUGHTS, THINKING = "reasoning_content", "thinking"
"""What most templates call thoughts, and what these do; not every transformers 5 gives both."""
_READS_THINKING = re.compile(r"""\.thinking\b|\[\s*['"]thinking['"]\s*\]|['"]thinking['"]\s+in\b""")
_FIRST_CALL = "tool_calls[0]"


def as_thinking(conversation: Conversation, source: str) -> Conversation:
    """The same for a template that knows thoughts by that name alone; as it is for another.

    Args:
        source: the template's.
    """
    if THOUGHTS in source or not _READS_THINKING.search(source):
        return conversation
    turns = conversation.turns
    if _FIRST_CALL in source:
        turns = [*_with_single_calls(turns)]
    return dataclasses.replace(conversation, turns=[_with_thinking(turn) for turn in turns])


def _with_thinking(turn: Turn) -> Turn:
    if THOUGHTS not in turn:
        return turn
    others = {key: value for key, value in turn.items() if key != THOUGHTS}
    thoughts = turn[THOUGHTS]
    if "tool_calls" in turn and turn["content"]:
        thoughts, others["content"] = f"{thoughts}\n{turn['content']}", ""
    return {**others, THINKING: thoughts}


def _with_single_calls(turns: list[Turn]) -> Iterator[Turn]:
    """A turn for each call, before its result: the one with its id, or the next."""
    waiting = [*turns]
    while waiting:
        turn = waiting.pop(0)
        calls = turn.get("tool_calls", ())
        if len(calls) < 2:
            yield turn
            continue
        results = []
        while waiting and waiting[0]["role"] == "tool":
            results.append(waiting.pop(0))
        for call in calls:
            yield {**turn, "tool_calls": [call]}
            turn = {"role": "assistant", "content": ""}
            named = [each for each in results if each.get("tool_call_id") == call.get("id")]
            for result in (named or results)[:1]:
                results.remove(result)
                yield result
        yield from results
