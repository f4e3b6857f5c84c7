"""Messages whole and streamed: blocks, how they end, usage."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message

from frontend.processing.tool_calls.format import NO_FORMAT
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.api.anthropic.asking import (
    CALL,
    HELLO,
    WEATHER,
    asked,
    body,
    check_order,
    client_of,
    content_of,
    events_of,
)
from tests.frontend.fakes import MODEL, answer_text
from tests.frontend.http_fakes import ScriptedService, running_http, says

ENABLED: Any = {"type": "enabled", "budget_tokens": 1024}
TEXT = f"It is\n{CALL}\n{CALL} then"
LENGTH = pb.FINISH_REASON_LENGTH


def without_ids(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of calls, which have a new one each time."""
    for block in blocks:
        assert block.get("id", "toolu_").startswith("toolu_")
    return [{name: block[name] for name in block if name != "id"} for block in blocks]


async def test_the_client_gets_the_same_whole_and_streamed() -> None:
    async with running_http() as http, client_of(http) as client:
        answer = await client.messages.create(**body(max_tokens=5))
        async with client.messages.stream(**body(max_tokens=5)) as stream:
            texts = [text async for text in stream.text_stream]
            streamed = await stream.get_final_message()
    text = answer_text("abc", 5)
    for message in (answer, streamed):
        assert [block.to_dict()["text"] for block in message.content] == [text]
        assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 5)
        assert (message.role, message.model, message.type) == ("assistant", MODEL, "message")
        assert message.id.startswith("msg_")
    assert "".join(texts) == text


@pytest.mark.slow
async def test_however_a_turn_is_cut_whole_and_stream_agree() -> None:
    service = ScriptedService([])
    cuts = [[TEXT[:place], TEXT[place:]] for place in range(len(TEXT) + 1)] + [list(TEXT)]
    async with running_http(service) as http:
        for thoughts in ("", "hm, so"):
            for cut in cuts if not thoughts else cuts[::7]:
                service.deltas = [
                    *(pb.Delta(reasoning=char, token_ids=[1]) for char in thoughts),
                    *(pb.Delta(text=piece, token_ids=[2]) for piece in cut),
                    pb.Delta(finish_reason=pb.FINISH_REASON_EOS, token_ids=[0]),
                ]
                _, _, whole = await asked(http, tools=[WEATHER], thinking=ENABLED)
                Message.model_validate(whole)
                events = await events_of(http, tools=[WEATHER], thinking=ENABLED)
                check_order(events)
                blocks = without_ids(whole["content"])
                assert without_ids(content_of(events)) == blocks
                kinds = [block["type"] for block in blocks]
                assert kinds == ["thinking"] * bool(thoughts) + [
                    "text", "tool_use", "tool_use", "text",
                ]  # fmt: skip
                assert [block for block in blocks if block["type"] == "tool_use"] == [
                    {"type": "tool_use", "name": "weather", "input": {"city": "Rome"}}
                ] * 2
                assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"


async def test_thoughts_may_come_again_behind_text() -> None:
    deltas = [pb.Delta(reasoning="h", token_ids=[1]), says("a")]
    service = ScriptedService([*deltas, pb.Delta(reasoning="m", token_ids=[1]), says("b")])
    async with running_http(service) as http:
        _, _, whole = await asked(http, thinking=ENABLED)
        events = await events_of(http, thinking=ENABLED)
        check_order(events)
        assert without_ids(content_of(events)) == without_ids(whole["content"])
    types = [block["type"] for block in whole["content"]]
    assert types == ["thinking", "text", "thinking", "text"]


async def test_thoughts_are_a_signed_block_that_is_taken_back() -> None:
    service = ScriptedService([pb.Delta(reasoning="hm", token_ids=[1]), says("42")])
    service.reasoning_tokens = 1
    async with running_http(service) as http, client_of(http) as client:
        answer = await client.messages.create(**body(thinking=ENABLED))
        thinking, text = answer.content
        assert thinking.type == "thinking"
        assert (thinking.thinking, text.to_dict()["text"]) == ("hm", "42")
        assert thinking.signature
        assert answer.usage.output_tokens_details is not None
        assert answer.usage.output_tokens_details.thinking_tokens == 1
        events = await events_of(http, thinking=ENABLED)
        signed = events[3]["delta"]
        assert signed == {"type": "signature_delta", "signature": thinking.signature}
        turns = [*HELLO, {"role": "assistant", "content": answer.content}, *HELLO]
        await client.messages.create(**body(messages=turns))
    assert service.requests[-1].messages[1] == pb.ChatMessage(
        role=pb.ROLE_ASSISTANT, content="42", reasoning="hm"
    )


@pytest.mark.parametrize(
    ("end", "reason", "stop"),
    [
        ({"finish_reason": pb.FINISH_REASON_EOS}, "end_turn", None),
        ({"finish_reason": pb.FINISH_REASON_STOP, "stop_token_id": 4}, "end_turn", None),
        ({"finish_reason": pb.FINISH_REASON_STOP, "stop_text": "END"}, "stop_sequence", "END"),
        ({"finish_reason": LENGTH, "token_ids": [1, 2]}, "max_tokens", None),
        ({"finish_reason": LENGTH}, "model_context_window_exceeded", None),
        ({"finish_reason": pb.FINISH_REASON_ABORTED, "token_ids": [1, 2]}, "max_tokens", None),
    ],
)
async def test_how_a_message_ends(end: dict[str, Any], reason: str, stop: str | None) -> None:
    service = ScriptedService([pb.Delta(text="a", **end)])
    async with running_http(service) as http:
        _, _, whole = await asked(http, max_tokens=2)
        events = await events_of(http, max_tokens=2)
    check_order(events)
    for told in (whole, events[-2]["delta"]):
        assert (told["stop_reason"], told["stop_sequence"]) == (reason, stop)


async def test_usage_tells_cached_tokens_apart() -> None:
    service = ScriptedService([says("abcd")])
    async with running_http(service) as http:
        _, _, whole = await asked(http)
        events = await events_of(http)
    usage = {
        "input_tokens": 2,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 1,
        "output_tokens": 4,
    }
    assert whole["usage"] == events[-2]["usage"] == usage
    assert events[0]["message"]["usage"] == usage | {"output_tokens": 0}


async def test_nothing_said_is_no_block() -> None:
    service = ScriptedService([pb.Delta(finish_reason=pb.FINISH_REASON_EOS)])
    async with running_http(service) as http:
        _, _, whole = await asked(http)
        events = await events_of(http)
    assert whole["content"] == []
    assert [event["type"] for event in events] == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ('{"city": "Rome", "days": 12, ', {"city": "Rome", "days": 12}),
        ('{"city": "Ro', {}),
        ('{"a": {"b": 1}, "c": {"d": 2', {"a": {"b": 1}}),
        ('{"a": [], "d": tr', {"a": []}),
        ("{", {}),
        ("", {}),
    ],
)
async def test_a_call_that_was_cut_has_the_members_that_came(
    said: str, taken: dict[str, Any]
) -> None:
    service = ScriptedService([says(said, LENGTH)])
    service.tool_format = NO_FORMAT
    choice = {"type": "tool", "name": "weather"}
    async with running_http(service) as http, client_of(http) as client:
        answer = await client.messages.create(
            **body(tools=[WEATHER], tool_choice=choice, max_tokens=len(said) or 1)
        )
    for block in answer.content:
        assert block.type == "tool_use"
        assert block.input == taken
    assert len(answer.content) == bool(said)


async def test_numbers_of_a_call_are_the_models_own() -> None:
    call = '<tool_call>{"name": "weather", "arguments": {"big": 1e999, "x": 1.10}}</tool_call>'
    service = ScriptedService([says(call)])
    async with running_http(service) as http, client_of(http) as client:
        answer = await client.messages.with_raw_response.create(**body(tools=[WEATHER]))
    assert '"input":{"big": 1e999, "x": 1.10}' in await answer.text()
