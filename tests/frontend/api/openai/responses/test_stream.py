"""Streams of responses: events of OpenAI's types, in its order, and the same as whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from frontend.api.openai.responses.thoughts import unsealed
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.api.openai.responses.asking import (
    AGENTS,
    PATCH,
    WEATHER,
    events,
    whole,
    without_ids,
)
from tests.frontend.http_fakes import says

TOOLS = [WEATHER, PATCH]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
CUSTOM = '<tool_call>{"name": "patch", "arguments": {"input": "a\\n\\ud83d\\ude00"}}</tool_call>'
SAID = f"Hi é {CALL}\n{CUSTOM}\nbye"
ITEM, PART = "response.output_item", "response.content_part"


def thinks(text: str) -> pb.Delta:
    return pb.Delta(reasoning=text, token_ids=text.encode())


def kinds(told: Sequence[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in told]


async def test_an_answer_s_events_come_in_openai_s_order() -> None:
    told = await events([pb.Delta(text="a", token_ids=[97]), says("b")])
    assert kinds(told) == [
        "response.created",
        "response.in_progress",
        f"{ITEM}.added",
        f"{PART}.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        f"{PART}.done",
        f"{ITEM}.done",
        "response.completed",
    ]
    assert [event["response"]["output"] for event in told[:2]] == [[], []]
    assert told[2]["item"]["content"] == []
    assert told[3]["part"]["text"] == ""
    (item,) = told[-1]["response"]["output"]
    assert item == told[-2]["item"]
    assert {event["item_id"] for event in told[3:8]} == {item["id"]}
    assert item["content"][0]["text"] == told[6]["text"] == told[7]["part"]["text"] == "ab"


async def test_thoughts_are_an_item_before_the_message() -> None:
    told = await events([thinks("h"), thinks("m"), says("yes")])
    assert kinds(told)[2:10] == [
        f"{ITEM}.added",
        f"{PART}.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        f"{PART}.done",
        f"{ITEM}.done",
        f"{ITEM}.added",
    ]
    thoughts, message = told[-1]["response"]["output"]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert (thoughts["summary"], "encrypted_content" in thoughts) == ([], False)
    assert message["content"][0]["text"] == "yes"


async def test_thoughts_may_come_again_behind_a_message() -> None:
    deltas = [thinks("h"), says("a"), thinks("m"), says(CALL)]
    told, answer = await events(deltas, tools=TOOLS), await whole(deltas, tools=TOOLS)
    output = told[-1]["response"]["output"]
    types = [item["type"] for item in output]
    assert types == ["reasoning", "message", "reasoning", "function_call"]
    assert without_ids(answer["output"]) == without_ids(output)


async def test_a_summary_that_was_asked_for_is_the_thoughts() -> None:
    asked: dict[str, Any] = {
        "reasoning": {"summary": "auto"},
        "include": ["reasoning.encrypted_content"],
    }
    told = await events([thinks("h"), thinks("m"), says("yes")], **asked)
    summary = "response.reasoning_summary"
    assert kinds(told)[2:9] == [
        f"{ITEM}.added",
        f"{summary}_part.added",
        f"{summary}_text.delta",
        f"{summary}_text.delta",
        f"{summary}_text.done",
        f"{summary}_part.done",
        f"{ITEM}.done",
    ]
    thoughts = told[8]["item"]
    assert thoughts["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert "content" not in thoughts
    assert unsealed(thoughts["encrypted_content"]) == "hm"


async def test_calls_are_items_of_their_own() -> None:
    told = await events([says(SAID)], tools=TOOLS)
    message, call, custom, rest = told[-1]["response"]["output"]
    assert message["content"][0]["text"] == "Hi é "
    assert (call["type"], call["name"]) == ("function_call", "weather")
    assert call["arguments"] == '{"city": "Rome"}'
    assert (custom["type"], custom["name"]) == ("custom_tool_call", "patch")
    assert custom["input"] == "a\n\N{GRINNING FACE}"
    assert rest["content"][0]["text"] == "bye"
    assert len({item["id"] for item in (message, call, custom, rest)}) == 4
    assert call["call_id"] != custom["call_id"]
    of_call = [event["type"] for event in told if event.get("output_index") == 1]
    assert of_call == [
        f"{ITEM}.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        f"{ITEM}.done",
    ]
    of_custom = [event["type"] for event in told if event.get("output_index") == 2]
    assert of_custom == [
        f"{ITEM}.added",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        f"{ITEM}.done",
    ]


@pytest.mark.parametrize("name", ["ask", "patch"])
async def test_a_call_has_its_tool_s_namespace(name: str) -> None:
    call = f'<tool_call>{{"name": "agents__{name}", "arguments": {{"input": "a"}}}}</tool_call>'
    told = await events([says(call)], tools=[AGENTS])
    (item,) = told[-1]["response"]["output"]
    assert (item["namespace"], item["name"]) == ("agents", name)
    assert item.get("input", "a") == "a"
    assert told[2]["item"]["namespace"] == "agents"


async def test_blanks_before_a_call_are_no_message() -> None:
    told = await events([pb.Delta(text="\n"), says(f"\n{CALL}")], tools=TOOLS)
    assert [item["type"] for item in told[-1]["response"]["output"]] == ["function_call"]
    alone = await whole([pb.Delta(text="\n"), says("\n")], tools=TOOLS)
    assert [item["content"][0]["text"] for item in alone["output"]] == ["\n\n"]


async def test_an_empty_answer_is_an_empty_message() -> None:
    (item,) = (await whole([says("")]))["output"]
    assert (item["type"], item["content"][0]["text"]) == ("message", "")
    cut = await whole([thinks("hm"), says("", pb.FINISH_REASON_LENGTH)])
    assert [item["type"] for item in cut["output"]] == ["reasoning"]
    assert (cut["status"], cut["output"][0]["status"]) == ("incomplete", "incomplete")


def joined(told: Sequence[dict[str, Any]]) -> list[str]:
    """The deltas of each item, put together."""
    texts: dict[int, str] = {}
    for event in told:
        if event["type"].endswith(".delta"):
            texts[event["output_index"]] = texts.get(event["output_index"], "") + event["delta"]
    return [texts[index] for index in sorted(texts)]


@pytest.mark.slow
@pytest.mark.parametrize("reason", [pb.FINISH_REASON_EOS, pb.FINISH_REASON_LENGTH])
@pytest.mark.parametrize("summary", [None, "auto"])
async def test_streamed_and_whole_agree_wherever_the_text_is_cut(
    reason: pb.FinishReason, summary: str | None
) -> None:
    asked: dict[str, Any] = {"tools": TOOLS, "reasoning": {"summary": summary}}
    ways = [[SAID[:place], SAID[place:]] for place in range(len(SAID) + 1)] + [[*SAID]]
    expected = None
    for pieces in ways:
        deltas = [thinks("h"), thinks("m"), *(pb.Delta(text=piece) for piece in pieces)]
        deltas.append(pb.Delta(finish_reason=reason))
        told = await events(deltas, **asked)
        last, answer = told[-1]["response"], await whole(deltas, **asked)
        expected = expected or without_ids(answer)
        assert without_ids(last) == without_ids(answer) == expected
        assert joined(told) == ["hm", "Hi é ", '{"city": "Rome"}', "a\n\N{GRINNING FACE}", "bye"]


@pytest.mark.parametrize("end", range(len(SAID) + 1))
async def test_an_output_that_is_cut_is_incomplete_wherever_it_is_cut(end: int) -> None:
    deltas = [says(SAID[:end], pb.FINISH_REASON_LENGTH)]
    told = await events(deltas, tools=TOOLS)
    last = told[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [event["item"] for event in told if event["type"] == f"{ITEM}.done"] == (
        last["response"]["output"]
    )
    assert without_ids(last["response"]) == without_ids(await whole(deltas, tools=TOOLS))


@pytest.mark.parametrize(
    ("tool", "said", "done", "status"),
    [
        (WEATHER, '{"city": "Ro', '{"city": "Ro', "incomplete"),
        (WEATHER, '{"city": "Rome"}', '{"city": "Rome"}', "completed"),
        (PATCH, '{"input": "a\\nb\\u00', "a\nb", "incomplete"),
        (PATCH, '{"input": "a\\nb"}', "a\nb", "completed"),
    ],
)
async def test_a_call_that_is_cut_is_as_far_as_it_came(
    tool: dict[str, Any], said: str, done: str, status: str
) -> None:
    choice = {"type": tool["type"], "name": tool["name"]}
    begun = f'<tool_call>\n{{"name": "{tool["name"]}", "arguments": '
    deltas = [pb.Delta(text=letter) for letter in begun + said]
    deltas.append(pb.Delta(finish_reason=pb.FINISH_REASON_LENGTH))
    told = await events(deltas, tools=[tool], tool_choice=choice)
    (item,) = told[-1]["response"]["output"]
    assert item.get("arguments", item.get("input")) == done
    assert item["status"] == status
    assert joined(told) == [done]


async def test_log_probabilities_are_those_of_the_message() -> None:
    tops = [pb.TopLogprobs(token_ids=[98], logprobs=[-2.0])]
    deltas = [
        pb.Delta(reasoning="h", token_ids=[104], logprobs=[-9.0], top_logprobs=tops),
        pb.Delta(text="a", token_ids=[97], logprobs=[-0.5], top_logprobs=tops),
        pb.Delta(token_ids=[200], logprobs=[-0.25], top_logprobs=tops),
        says("c", logprobs=[-1.0], top_logprobs=tops),
    ]
    include = ["message.output_text.logprobs"]
    told = await events(deltas, include=include, top_logprobs=1)
    found = [
        entry
        for event in told
        if event["type"] == "response.output_text.delta"
        for entry in event["logprobs"]
    ]
    assert [entry["logprob"] for entry in found] == [-0.5, -0.25, -1.0]
    assert found[0]["top_logprobs"] == [{"token": "b", "logprob": -2.0, "bytes": [98]}]
    assert found[1]["bytes"] == []  # part of a character
    part = told[-1]["response"]["output"][1]["content"][0]
    assert part["logprobs"] == found
    assert (await whole(deltas, include=include))["output"][1]["content"][0]["logprobs"]
    assert not (await whole(deltas))["output"][1]["content"][0]["logprobs"]


async def test_usage_is_in_the_last_event() -> None:
    usage = (await events([says("abc")]))[-1]["response"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (3, 3, 6)
    assert usage["input_tokens_details"]["cached_tokens"] == 1
    assert usage["output_tokens_details"]["reasoning_tokens"] == 0
