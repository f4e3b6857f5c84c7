"""Responses through the real `openai` client: answers, streams, errors before and behind the first
token, and what the other paths share with them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from frontend.api.http import long_json
from frontend.errors import Code, RequestError
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.api.openai.responses.asking import WEATHER
from tests.frontend.fakes import MODEL, answer_text, queue_full
from tests.frontend.http_fakes import ScriptedService, get, only_key, post, running_http, says

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
PATH = "/v1/responses"


async def test_an_answer_is_whole_and_streamed() -> None:
    async with running_http() as http:
        asked: dict[str, Any] = {"model": MODEL, "input": "abc", "max_output_tokens": 5}
        answer = await http.client.responses.create(**asked)
        async with http.client.responses.stream(**asked) as stream:
            told = [event async for event in stream]
    text = "".join(event.delta for event in told if event.type == "response.output_text.delta")
    assert answer.output_text == text == answer_text("abc", 5)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 5


class City(BaseModel):
    city: str


async def test_output_and_arguments_are_models_of_pydantic() -> None:
    async with running_http(ScriptedService([says('{"city": "Rome"}')])) as http:
        parsed = await http.client.responses.parse(model=MODEL, input="a", text_format=City)
    assert parsed.output_parsed == City(city="Rome")
    tools: list[Any] = [openai.pydantic_function_tool(City, name="weather")]
    async with running_http(ScriptedService([says(CALL)])) as http:
        called: Any = await http.client.responses.parse(model=MODEL, input="a", tools=tools)
        async with http.client.responses.stream(model=MODEL, input="a", tools=tools) as stream:
            streamed: Any = await stream.get_final_response()
    for answer in (called, streamed):
        assert answer.output[0].parsed_arguments == City(city="Rome")


async def test_a_loop_of_tools_sends_back_what_it_was_given() -> None:
    service = ScriptedService([pb.Delta(reasoning="hm"), says(f"Let me see.{CALL}")])
    async with running_http(service) as http:
        items: list[Any] = [{"role": "user", "content": "How is Rome?"}]
        tools: list[Any] = [WEATHER]
        create: Any = http.client.responses.create
        answer = await create(model=MODEL, input=items, tools=tools)
        call = answer.output[-1]
        items += [item.model_dump() for item in answer.output]
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": "warm"})
        await create(model=MODEL, input=items, tools=tools)
    user, assistant, result = service.requests[1].messages
    assert (user.content, result.content) == ("How is Rome?", "warm")
    assert (assistant.reasoning, assistant.content) == ("hm", "Let me see.")
    assert [each.id for each in assistant.tool_calls] == [call.call_id] == [result.tool_call_id]


async def test_events_have_names_and_no_mark_at_their_end() -> None:
    async with running_http(ScriptedService([says("a")])) as http:
        body = json.dumps({"input": "a", "stream": True}).encode()
        status, headers, sent = await post(http.port, body, path=PATH)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    lines = [line for line in sent.decode().split("\r\n") if ":" in line]
    blocks = "".join(lines).strip().split("\n\n")
    assert "[DONE]" not in sent.decode()
    for block in blocks:
        name, data = block.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert blocks[-1].startswith("event: response.completed")


class Breaking(ScriptedService):
    """Fails behind its deltas."""

    def __init__(self, error: Exception) -> None:
        super().__init__([pb.Delta(text="a", token_ids=[97])])
        self.error = error

    async def _events(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        async for event in super()._events(request):
            if event.HasField("finished"):
                raise self.error
            yield event


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (RequestError(Code.UNAVAILABLE, "gone", reason="LOST"), "server_error", "lost"),
        (queue_full(), "rate_limit_exceeded", "queue_full"),
        (RequestError(Code.INVALID_ARGUMENT, "no", reason="NO"), "invalid_prompt", "no"),
        (ValueError("a bug"), "server_error", "internal"),
    ],
)
async def test_an_error_behind_the_first_token_is_the_stream_s_end(
    error: Exception, code: str, word: str
) -> None:
    async with running_http(Breaking(error)) as http:
        body = json.dumps({"input": "a", "stream": True}).encode()
        status, _, sent = await post(http.port, body, path=PATH)
        stream = await http.client.responses.create(model=MODEL, input="a", stream=True)
        with pytest.raises(openai.APIError) as caught:
            _ = [event async for event in stream]
    assert status == 200
    told = [json.loads(line[6:]) for line in sent.decode().split("\n") if line.startswith("data: ")]
    assert [event["type"] for event in told[-2:]] == ["error", "response.failed"]
    assert [event["sequence_number"] for event in told] == [*range(len(told))]
    assert told[-2]["code"] == told[-2]["error"]["code"] == caught.value.code == word
    assert told[-1]["response"]["status"] == "failed"
    assert told[-1]["response"]["error"]["code"] == code


async def test_an_error_before_it_has_a_status_of_its_own() -> None:
    async with running_http() as http:
        http.engine.refuse = queue_full()
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                await http.client.responses.create(model=MODEL, input="abc", stream=stream)
            assert caught.value.response.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"top_p": 2.0}, "top_p"),
        ({"max_output_tokens": 10**9}, "max_output_tokens"),
        ({"input": []}, "input"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"type": 3}}}},
            "text.format.schema",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "x" * 300}]},
            "input[0].name",
        ),
        ({"input": "abc" * 10_000}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
async def test_errors_name_the_parameter(values: dict[str, Any], param: str) -> None:
    async with running_http() as http:
        body = json.dumps({"input": "a", **values}).encode()
        status, _, sent = await post(http.port, body, path=PATH)
    error = json.loads(sent)["error"]
    assert (status, error["param"]) == (400, param)
    assert "messages" not in error["message"]


async def test_nothing_is_stored() -> None:
    async with running_http() as http:
        for method in ("GET", "DELETE"):
            create: Any = http.client.responses
            with pytest.raises(openai.NotFoundError, match="no response is stored here"):
                await (create.retrieve if method == "GET" else create.delete)("resp_1")
        with pytest.raises(openai.NotFoundError, match="no response is stored here"):
            await http.client.responses.cancel("resp_1")
        status, headers, _ = await get(http.port, PATH)
        assert (status, headers["allow"]) == (405, "POST")


async def test_it_asks_for_a_key_and_takes_a_request_s_id() -> None:
    async with running_http(authenticate=only_key) as http:
        with pytest.raises(openai.AuthenticationError):
            await http.client.with_options(api_key="wrong").responses.create(model=MODEL, input="a")
        answer = await http.client.responses.create(
            model=MODEL, input="a", max_output_tokens=1, extra_headers={"x-request-id": "mine"}
        )
    assert answer.id == "resp_mine"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_has_a_bound(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_json, "MAX_ANSWER_BYTES", 5_000)
    async with running_http() as http:
        asked: dict[str, Any] = {"model": MODEL, "input": "abc", "max_output_tokens": 40}
        create: Any = http.client.responses.create
        assert (await create(**asked)).status == "incomplete"

        async def ask_for_much() -> None:
            answer = await create(top_logprobs=20, stream=stream, **asked)
            _ = [event async for event in answer]

        with pytest.raises(openai.APIError, match="5000 bytes"):
            await ask_for_much()
