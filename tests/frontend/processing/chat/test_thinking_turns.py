"""What templates are given that know thoughts as thinking, and show one call of a turn."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.processing.chat.conversation import Conversation, Turn
from frontend.processing.chat.thinking_turns import as_thinking
from tests.frontend.processing.chat import templates

TOKENIZER = templates.tokenizer_of(templates.HARMONY, *templates.HARMONY_TOKENS)
BEFORE = "<|start|>system<|message|>Reasoning: medium<|end|><|start|>user<|message|>q<|end|>"
AFTER = "<|start|>assistant"


def called(name: str, call_id: str = "") -> Any:
    call = {"type": "function", "function": {"name": name, "arguments": {}}}
    return {**call, "id": call_id} if call_id else call


def call_text(name: str) -> str:
    return (
        f"<|start|>assistant to=functions.{name}<|channel|>commentary json<|message|>{{}}<|call|>"
    )


def result_text(name: str, result: str) -> str:
    return (
        f'<|start|>functions.{name} to=assistant<|channel|>commentary<|message|>"{result}"<|end|>'
    )


def rendered(*turns: Turn) -> str:
    first: Turn = {"role": "user", "content": "q"}
    ids = TOKENIZER.render_chat(Conversation(turns=[first, *turns]))
    text = TOKENIZER.decode(ids, True)
    assert text.startswith(BEFORE)
    assert text.endswith(AFTER)
    return text[len(BEFORE) : -len(AFTER)]


def assistant(content: str = "", **more: Any) -> Turn:
    return {"role": "assistant", "content": content, **more}


def result(content: str, **more: Any) -> Turn:
    return {"role": "tool", "content": content, **more}


@pytest.mark.parametrize(
    ("content", "thoughts", "shown"),
    [("", "hm", "hm"), ("Look", "", "Look"), ("Look", "hm <|end|>", "hm <|end|>\nLook")],
)
def test_thoughts_beside_a_call(content: str, thoughts: str, shown: str) -> None:
    """The template would refuse them beside content. What they spell is no token."""
    more = {"reasoning_content": thoughts} if thoughts else {}
    turn = assistant(content, tool_calls=[called("f")], **more)
    text = rendered(turn, result("r"))
    before = f"<|start|>assistant<|channel|>analysis<|message|>{shown}<|end|>"
    assert text == before + call_text("f") + result_text("f", "r")
    ids = TOKENIZER.render_chat(Conversation(turns=[turn]))
    assert ids.count(TOKENIZER.encode("<|end|>")[0]) == 2


def test_thoughts_of_an_answer_are_for_the_template_to_show() -> None:
    text = rendered(assistant("yes", reasoning_content="hm"), {"role": "user", "content": "b"})
    assert text.startswith("<|start|>assistant<|channel|>final<|message|>yes<|end|>")


@pytest.mark.parametrize("has_ids", [False, True])
def test_several_calls_of_a_turn_are_turns(has_ids: bool) -> None:
    ids = ("1", "2", "3") if has_ids else ("", "", "")
    order = (1, 0) if has_ids else (0, 1)
    results = [result(f"r{n}", tool_call_id=ids[n]) for n in order]
    calls = [called(name, call_id) for name, call_id in zip("fgh", ids, strict=True)]
    text = rendered(assistant(reasoning_content="hm", tool_calls=calls), *results, assistant("yes"))
    parts = [call_text("f"), result_text("f", "r0"), call_text("g"), result_text("g", "r1")]
    expected = "".join([*parts, call_text("h")])
    assert f"<|message|>hm<|end|>{expected}<|start|>assistant" in text


@pytest.mark.parametrize(
    "source",
    [
        templates.QWEN,
        "{{ m.reasoning_content }}{{ m.thinking }}{{ m.tool_calls[0] }}",
        "{% if thinking %}<think>{% endif %}{{ m.tool_calls[0] }}",
    ],
)
def test_other_templates_are_given_what_was_sent(source: str) -> None:
    said = Conversation(turns=[assistant("a", reasoning_content="b", tool_calls=[called("f")] * 2)])
    assert as_thinking(said, source) is said
