"""Chat completions through the real `openai` client: shapes, fields, tools, log-probabilities."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from frontend.processing.tool_calls.format import NO_FORMAT
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL, answer_text
from tests.frontend.http_fakes import ScriptedService, running_http, says

TEXT: Any = {"type": "text", "text": "hi"}
HELLO: list[Any] = [{"role": "user", "content": "abc"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


async def test_an_answer_is_whole() -> None:
    async with running_http() as http:
        answer = await http.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_completion_tokens=5
        )
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == answer_text("abc", 5)
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


async def test_a_stream_says_the_same_and_ends_with_usage() -> None:
    async with running_http() as http:
        stream = await http.client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == answer_text("abc", 5)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert chunks[-2].choices[0].delta.to_dict() == {}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_keep_apart(stream: bool) -> None:
    service = ScriptedService(
        [
            pb.Delta(index=1, text="x", token_ids=[120]),
            pb.Delta(index=0, text="a", token_ids=[97]),
            says("y", pb.FINISH_REASON_LENGTH, 1),
            says("b", pb.FINISH_REASON_ABORTED, 0),
        ]
    )
    async with running_http(service) as http:
        create: Any = http.client.chat.completions.create
        answer = await create(model=MODEL, messages=HELLO, n=2, stream=stream)
        texts, reasons = {0: "", 1: ""}, {}
        if stream:
            async for chunk in answer:
                choice = chunk.choices[0]
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason
        else:
            for choice in answer.choices:
                texts[choice.index] = choice.message.content
                reasons[choice.index] = choice.finish_reason
    assert service.requests[0].request.n == 2
    assert service.streams == [stream]
    assert texts == {0: "ab", 1: "xy"}
    assert reasons == {0: "length", 1: "length"}


async def test_fields_reach_the_request() -> None:
    service = ScriptedService([says("a", logprobs=[-1.0])])
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    async with running_http(service) as http:
        await http.client.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [TEXT, TEXT]},
            ],
            temperature=0.5,
            top_p=0.25,
            seed=-1,
            stop="x",
            max_tokens=7,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            logit_bias={"5": 1.5},
            logprobs=True,
            top_logprobs=3,
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
            user="somebody",
            extra_body={
                "top_k": -1,
                "min_p": 0.125,
                "repetition_penalty": 1.5,
                "ignore_eos": True,
                "min_tokens": 2,
                "stop_token_ids": [4],
                "skip_special_tokens": False,
                "include_stop_str_in_output": True,
                "chat_template_kwargs": {"enable_thinking": False},
                "parse_special_tokens": True,
                "add_generation_prompt": False,
                "no_such_field": 1,
            },
        )  # fmt: skip
    asked = service.requests[0]
    request = asked.request
    assert [(each.role, each.content) for each in asked.messages] == [
        (pb.ROLE_SYSTEM, "be brief"),
        (pb.ROLE_USER, "hihi"),
    ]
    assert json.loads(asked.template_kwargs_json) == {"enable_thinking": False}
    assert asked.tools_json == ""
    assert asked.parse_special_tokens
    assert asked.HasField("add_generation_prompt")
    assert not asked.add_generation_prompt
    assert request.sampling == pb.SamplingParams(
        temperature=0.5, top_p=0.25, seed=2**64 - 1, presence_penalty=0.5, frequency_penalty=-0.5,
        logit_bias={5: 1.5}, top_k=0, min_p=0.125, repetition_penalty=1.5,
    )  # fmt: skip
    assert request.stop_conditions == pb.StopConditions(
        max_new_tokens=7, min_new_tokens=2, stop=["x"], stop_token_ids=[4], ignore_eos=True,
        include_stop=True,
    )  # fmt: skip
    assert (request.output.logprobs, request.output.top_logprobs) == (True, 3)
    assert request.output.keep_special_tokens
    assert json.loads(request.constraint.json_schema) == schema


NULL = {"type": "null"}
NULL_TEXT = json.dumps(NULL)
CONSTRAINTS: list[tuple[dict[str, Any], str | None, object]] = [
    ({"response_format": {"type": "json_object"}}, "json_object", True),
    ({"response_format": {"type": "json_object", "schema": NULL}}, "json_schema", NULL_TEXT),
    ({"response_format": {"type": "json_schema", "schema": NULL}}, "json_schema", NULL_TEXT),
    ({"guided_regex": "a+"}, "regex", "a+"),
    ({"guided_choice": ["a", 'b"']}, "grammar", 'start: "a" | "b\\""'),
    ({"structured_outputs": {"json": NULL_TEXT}}, "json_schema", NULL_TEXT),
    ({"response_format": {"type": "text"}}, None, None),
]


async def test_constraints() -> None:
    service = ScriptedService([says("a")])
    async with running_http(service) as http:
        for body, language, value in CONSTRAINTS:
            await http.client.chat.completions.create(model=MODEL, messages=HELLO, extra_body=body)
            constraint = service.requests.pop().request.constraint
            assert constraint.WhichOneof("language") == language
            assert language is None or getattr(constraint, language) == value


async def test_logprobs_have_text_bytes_and_alternatives() -> None:
    delta = says("a", logprobs=[-0.5])
    delta.token_ids.append(0xC3)  # the first half of a character
    delta.logprobs.append(float("-inf"))
    delta.top_logprobs.add(token_ids=[97, 98], logprobs=[-0.5, -1.5])
    delta.top_logprobs.add()
    async with running_http(ScriptedService([delta])) as http:
        answer = await http.client.chat.completions.create(
            model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    first, second = logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("a", -0.5, [97])
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("a", -0.5), ("b", -1.5)]
    assert (second.token, second.logprob, second.bytes) == ("\ufffd", -9999.0, None)


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_come_beside_the_content(stream: bool) -> None:
    thoughts = [pb.Delta(reasoning=part, token_ids=[1], logprobs=[-0.5]) for part in ("h", "m")]
    service = ScriptedService([*thoughts, says("a", logprobs=[-1.0])])
    service.reasoning_tokens = 2
    async with running_http(service) as http:
        create: Any = http.client.chat.completions.create
        more = {"stream_options": {"include_usage": True}} if stream else {}
        answer = await create(model=MODEL, messages=HELLO, logprobs=True, stream=stream, **more)
        if stream:
            chunks = [chunk async for chunk in answer]
            told = [chunk.choices[0] for chunk in chunks[1:-2]]
            deltas = [each.delta.model_dump(exclude_unset=True) for each in told]
            assert deltas == [
                {"reasoning_content": "h"},
                {"reasoning_content": "m"},
                {"content": "a"},
            ]
            assert [each.logprobs.content[0].logprob for each in told] == [-0.5, -0.5, -1.0]
            usage = chunks[-1].usage
        else:
            [choice] = answer.choices
            assert (choice.message.reasoning_content, choice.message.content) == ("hm", "a")
            assert len(choice.logprobs.content) == 3
            usage = answer.usage
    assert usage.completion_tokens_details.reasoning_tokens == 2


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_thoughts_of_the_history_are_passed_on(name: str) -> None:
    service = ScriptedService([says("a")])
    messages: list[Any] = [{"role": "assistant", "content": "b", name: "hm"}, *HELLO]
    async with running_http(service) as http:
        await http.client.chat.completions.create(model=MODEL, messages=messages)
    first, second = service.requests[0].messages
    assert (first.reasoning, second.reasoning) == ("hm", "")


async def test_one_call_where_several_at_once_are_not_wanted() -> None:
    async with running_http(ScriptedService([says(CALL + CALL)])) as http:
        create: Any = http.client.chat.completions.create
        answer = await create(
            model=MODEL, messages=HELLO, tools=[WEATHER], parallel_tool_calls=False
        )
    [choice] = answer.choices
    assert len(choice.message.tool_calls) == 1
    assert choice.message.content == CALL


@pytest.mark.parametrize("cut", [1, 3, 1000])
@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_are_read_from_the_text(stream: bool, cut: int) -> None:
    text = f"Let me look.\n{CALL}\n{CALL}"
    parts = [text[begin : begin + cut] for begin in range(0, len(text), cut)]
    service = ScriptedService([*(pb.Delta(text=part, token_ids=[1]) for part in parts), says("")])
    async with running_http(service) as http:
        create: Any = http.client.chat.completions.create
        answer = await create(model=MODEL, messages=HELLO, tools=[WEATHER], stream=stream)
        content, calls, reason = "", [], None
        if stream:
            async for chunk in answer:
                choice = chunk.choices[0]
                content += choice.delta.content or ""
                calls += choice.delta.tool_calls or []
                reason = choice.finish_reason
            assert [call.index for call in calls] == [0, 1]
        else:
            choice = answer.choices[0]
            content, calls, reason = (
                choice.message.content,
                choice.message.tool_calls,
                choice.finish_reason,
            )
    assert json.loads(service.requests[0].tools_json) == [WEATHER]
    assert content.strip() == "Let me look."
    assert [call.function.name for call in calls] == ["weather", "weather"]
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Rome"}] * 2
    assert len({call.id for call in calls}) == 2
    assert reason == "tool_calls"


@pytest.mark.parametrize("text", ["<tool_call>no JSON</tool_call>", "1 < 2 <tool", "<tool_call>{"])
async def test_what_is_no_call_is_content(text: str) -> None:
    async with running_http(ScriptedService([says(text)])) as http:
        answer = await http.client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            tools=[WEATHER],  # type: ignore[list-item]
        )
    assert answer.choices[0].message.content == text
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("required", '[{"name": "weather", "arguments": {"city": "Rome"}}]'),
        ({"type": "function", "function": {"name": "weather"}}, '{"city": "Rome"}'),
    ],
)
async def test_a_call_can_be_asked_for(choice: Any, said: str) -> None:
    service = ScriptedService([pb.Delta(text=said[:5], token_ids=[1]), says(said[5:])])
    service.tool_format = NO_FORMAT
    async with running_http(service) as http:
        create: Any = http.client.chat.completions.create
        answer = await create(model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice=choice)
    assert service.requests[0].request.constraint.json_schema
    message = answer.choices[0].message
    assert message.content is None
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_no_tools_are_shown_when_none_may_be_called() -> None:
    service = ScriptedService([says(CALL)])
    async with running_http(service) as http:
        create: Any = http.client.chat.completions.create
        answer = await create(model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice="none")
    assert service.requests[0].tools_json == ""
    assert answer.choices[0].message.content == CALL


async def test_turns_of_tools_go_back_to_the_template() -> None:
    service = ScriptedService([says("a")])
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages: list[Any] = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    async with running_http(service) as http:
        await http.client.chat.completions.create(model=MODEL, messages=messages)
    first, second = service.requests[0].messages
    assert first.tool_calls[0] == pb.ToolCall(id="c1", name="f", arguments_json='{"a": 1}')
    assert (second.role, second.tool_call_id, second.content) == (pb.ROLE_TOOL, "c1", "2")


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
BAD: list[tuple[str, dict[str, Any]]] = [
    ("messages[0].role", {"messages": [{"role": "king", "content": "a"}]}),
    ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [IMAGE]}]}),
    ("messages", {"messages": []}),
    ("messages", {"messages": "hello"}),
    ("temperature", {"temperature": "hot"}),
    ("temperature", {"temperature": -1}),
    ("top_p", {"top_p": 1.5}),
    ("top_k", {"top_k": 2**40}),
    ("max_tokens", {"max_tokens": 1000}),
    ("max_completion_tokens", {"max_completion_tokens": 1000}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": -3}),
    ("stop[1]", {"stop": ["x", ""]}),
    ("stop", {"stop": [1]}),
    ("logit_bias", {"logit_bias": {"a": 1}}),
    ("logit_bias.5", {"logit_bias": {"5": "much"}}),
    ("top_logprobs", {"top_logprobs": 2}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    ("response_format.type", {"response_format": {"type": "yaml"}}),
    ("response_format.json_schema", {"response_format": {"type": "json_schema"}}),
    ("response_format", {"response_format": {"type": "json_object"}, "guided_regex": "a"}),
    ("tools[0].type", {"tools": [{"type": "database"}]}),
    ("tool_choice", {"tools": [WEATHER], "tool_choice": "sometimes"}),
    ("tool_choice", {"tools": [WEATHER], "tool_choice": {"function": {"name": "f"}}}),
    ("chat_template_kwargs", {"chat_template_kwargs": {"chat_template": "x"}}),
    ("best_of", {"best_of": 3}),
    ("stream", {"stream": "yes"}),
    ("continue_final_message", {"continue_final_message": True}),
    ("add_generation_prompt", {"add_generation_prompt": "no"}),
]  # fmt: skip


async def test_a_bad_field_is_named_as_openai_names_it() -> None:
    async with running_http() as http:
        for param, body in BAD:
            with pytest.raises(openai.BadRequestError) as caught:
                await http.client.post(
                    "/chat/completions", body={"messages": HELLO, **body}, cast_to=object
                )
            assert caught.value.param == param
            assert caught.value.type == "invalid_request_error"
            assert param in caught.value.message
            assert "stop_conditions." not in caught.value.message
            assert "request." not in caught.value.message
        assert not http.engine.requests
