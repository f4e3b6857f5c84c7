"""Anthropic's own package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.clients.anthropic.anthropic_loop import run_messages
from tests.clients.cases import (
    ANSWER,
    CHAIN,
    CHAIN_ANSWER,
    CHAIN_THOUGHT,
    KEY,
    MIA,
    MIA_PERSON,
    MODEL,
    NO_TOP_P,
    PAINT,
    SUM,
    Paint,
    Person,
)
from tests.clients.loops import check_at_once

pytestmark = pytest.mark.processes

ASKED: Any = {
    "model": MODEL,
    "max_tokens": 20,
    "messages": [{"role": "user", "content": SUM}],
}
TOOL: Any = {"name": "paint", "description": "Paint.", "input_schema": Paint.model_json_schema()}


@pytest.fixture
def client(url: str) -> Iterator[anthropic.Anthropic]:
    base_url = url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=base_url, api_key=KEY, max_retries=0) as client:
        yield client


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_it_answers_whole_and_streamed_with_usage(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(**ASKED)
    with client.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == ANSWER
        streamed = stream.get_final_message()
    for message in (answer, streamed):
        assert text_of(message) == ANSWER
        assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 3)
    counted = client.messages.count_tokens(model=MODEL, messages=ASKED["messages"])
    usage = streamed.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_the_first_event_tells_cached_tokens(client: anthropic.Anthropic) -> None:
    asked = {**ASKED, "system": "Be brief. " * 20}
    usages = []
    for _ in range(2):
        with client.messages.create(**asked, stream=True) as stream:
            usages += [event.message.usage for event in stream if event.type == "message_start"]
    assert usages[1].cache_read_input_tokens > 0
    total = usages[0].input_tokens + usages[0].cache_read_input_tokens
    assert usages[1].input_tokens + usages[1].cache_read_input_tokens == total


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "paint"}])
def test_a_tool_is_called_that_has_to_be(client: anthropic.Anthropic, choice: Any) -> None:
    turns: list[Any] = [{"role": "user", "content": PAINT}]
    asked = {"model": MODEL, "max_tokens": 400, "tools": [TOOL], "tool_choice": choice}
    whole = client.messages.create(**asked, messages=turns)
    with client.messages.stream(**asked, messages=turns) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        call = answer.content[0]
        assert call.type == "tool_use"
        Paint.model_validate(call.input)


def test_loops_of_tools(client: anthropic.Anthropic) -> None:
    check_at_once(lambda loop: run_messages(client, loop).check(loop))


def test_thoughts_come_apart_from_the_answer(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 100, "thinking": {"type": "adaptive"}}
    asked["messages"] = [{"role": "user", "content": CHAIN}]
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        thought = message.content[0]
        assert thought.type == "thinking"
        assert (thought.thinking, text_of(message)) == (CHAIN_THOUGHT, CHAIN_ANSWER)


def test_output_is_filled_rightly(client: anthropic.Anthropic) -> None:
    turns: Any = [{"role": "user", "content": MIA}]
    answer = client.messages.parse(
        model=MODEL, max_tokens=100, messages=turns, output_format=Person
    )
    assert answer.parsed_output == MIA_PERSON


def test_output_is_a_model_of_pydantic(client: anthropic.Anthropic) -> None:
    turns: Any = [{"role": "user", "content": PAINT}]
    answer = client.messages.parse(model=MODEL, max_tokens=400, messages=turns, output_format=Paint)
    assert isinstance(answer.parsed_output, Paint)


def test_errors_have_their_classes(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="top_p"):
        client.messages.create(**ASKED, extra_body={"top_p": NO_TOP_P})
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="another").models.list()
    assert [model.id for model in client.models.list()] == [MODEL]
