"""System turns behind others: shown where they are, whatever the template makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.processing.chat.conversation import Conversation
from tests.frontend.processing.chat import templates

_FIRST_ALONE = (
    "{%% for m in messages %%}{%% if m.role == 'system' and not loop.first %%}%s{%% else %%}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%% endif %%}{%% endfor %%}"
)
REFUSING = templates.tokenizer_of(_FIRST_ALONE % "{{ raise_exception('System must be first') }}")
DROPPING = templates.tokenizer_of(_FIRST_ALONE % "")
SHOWING = templates.tokenizer_of(templates.CHATML)


def shown(tokenizer: Any, *turns: tuple[str, str]) -> str:
    """The prompt, a turn a line."""
    given = Conversation(
        turns=[{"role": role, "content": content} for role, content in turns], asks=False
    )
    text = tokenizer.decode(tokenizer.render_chat(given), True)
    return str(text).replace("<|im_start|>", "").replace("<|im_end|>\n", "|")


def reminder(text: str) -> str:
    return f"<system-reminder>\n{text}\n</system-reminder>"


@pytest.mark.parametrize("tokenizer", [REFUSING, DROPPING], ids=["refusing", "dropping"])
def test_they_become_the_users_where_the_template_has_none(tokenizer: Any) -> None:
    a, b = reminder("a"), reminder("b")
    for turns, wanted in (
        ([("system", "s"), ("user", "u"), ("system", "a")], f"system\ns|user\nu\n{a}|"),
        ([("user", "u"), ("system", "a"), ("user", "v")], f"user\nu\n{a}\nv|"),
        (
            [("user", "u"), ("assistant", "x"), ("system", "a"), ("system", "b"), ("user", "v")],
            f"user\nu|assistant\nx|user\n{a}\n{b}\nv|",
        ),
        (
            [("user", "u"), ("tool", "r"), ("system", "a"), ("assistant", "x"), ("user", "v")],
            f"user\nu|tool\nr|user\n{a}|assistant\nx|user\nv|",
        ),
        ([("system", "s"), ("system", "t"), ("user", "u")], "system\ns\nt|user\nu|"),
    ):
        assert shown(tokenizer, *turns) == wanted


def test_they_stay_where_the_template_shows_them() -> None:
    turns = [("system", "s"), ("user", "u"), ("system", "a"), ("user", "v")]
    assert shown(SHOWING, *turns) == "system\ns|user\nu|system\na|user\nv|"


@pytest.mark.parametrize("tokenizer", [REFUSING, DROPPING], ids=["refusing", "dropping"])
def test_other_turns_are_as_they_were(tokenizer: Any) -> None:
    turns = [("system", "s"), ("user", "u"), ("user", "v"), ("assistant", "x")]
    assert shown(tokenizer, *turns) == "system\ns|user\nu|user\nv|assistant\nx|"
