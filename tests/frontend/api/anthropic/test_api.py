"""The API over a socket: paths, models, counts, errors and keys."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from anthropic.types.shared import ErrorResponse

from frontend.api.http import long_json
from frontend.errors import Code, RequestError
from frontend.records import UNKNOWN_CALLER
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.api.anthropic.asking import HELLO, asked, body, client_of
from tests.frontend.fakes import MODEL
from tests.frontend.http_fakes import ScriptedService, get, only_key, post, running_http, says

VERSION = "anthropic-version: 2023-06-01"


class FailingService(ScriptedService):
    """Fails after its deltas."""

    def __init__(self, error: Exception, *deltas: pb.Delta) -> None:
        super().__init__(deltas)
        self.error = error

    async def chat(
        self, request: Any, caller: Any = UNKNOWN_CALLER, *, streams: bool = True
    ) -> Any:
        yield pb.GenerateResponse(started=pb.GenerateStarted(prompt_tokens=3))
        for delta in self.deltas:
            yield pb.GenerateResponse(delta=delta)
        raise self.error


def failure(code: Code, **more: Any) -> RequestError:
    return RequestError(code, "no", reason="NO", **more)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (failure(Code.INVALID_ARGUMENT), 400, "invalid_request_error"),
        (failure(Code.PERMISSION_DENIED), 403, "permission_error"),
        (failure(Code.NOT_FOUND), 404, "not_found_error"),
        (failure(Code.RESOURCE_EXHAUSTED, retry_after=1.5), 429, "rate_limit_error"),
        (failure(Code.INTERNAL), 500, "api_error"),
        (failure(Code.UNAVAILABLE), 503, "overloaded_error"),
        (failure(Code.DEADLINE_EXCEEDED), 504, "timeout_error"),
        (ValueError("a bug"), 500, "api_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_has_anthropics_shape(
    error: Exception, status: int, kind: str, stream: bool
) -> None:
    async with running_http(FailingService(error)) as http:
        got, headers, answer = await asked(http, "x-request-id: mine", stream=stream)
    ErrorResponse.model_validate(answer)
    assert (got, answer["error"]["type"]) == (status, kind)
    assert answer["request_id"] == headers["request-id"] == "mine"
    assert "a bug" not in str(answer)
    assert headers.get("retry-after") == ("2" if status == 429 else None)


async def test_an_error_in_a_stream_is_its_last_event() -> None:
    service = FailingService(failure(Code.UNAVAILABLE), pb.Delta(text="a", token_ids=[1]))
    async with running_http(service) as http, client_of(http) as client:
        texts = []
        with pytest.raises(anthropic.APIStatusError) as caught:
            async with client.messages.stream(**body()) as stream:
                texts = [text async for text in stream.text_stream]
    assert texts == []
    assert caught.value.type == "overloaded_error"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["request_id"]


@pytest.mark.parametrize(
    ("sent", "headers", "path", "status", "kind"),
    [
        (b"{", (), "", 400, "invalid_request_error"),
        (b"[]", (), "", 400, "invalid_request_error"),
        (b"{}", (), "", 400, "invalid_request_error"),
        (b"{}", ("content-type: text/plain",), "", 415, "invalid_request_error"),
        (b"[" + b"[]," * 20_001 + b"]", (), "", 413, "request_too_large"),
        (b"{}", (), "/batches", 404, "not_found_error"),
        (b"[" * 5000 + b"]" * 5000, (), "", 400, "invalid_request_error"),
    ],
)
async def test_what_comes_before_the_parameters_is_anthropics_error_too(
    sent: bytes, headers: tuple[str, ...], path: str, status: int, kind: str
) -> None:
    async with running_http() as http:
        got, found, answer = await post(http.port, sent, *headers, path=f"/v1/messages{path}")
    error = json.loads(answer)
    assert (got, error["error"]["type"]) == (status, kind)
    assert error["request_id"] == found["request-id"]


async def test_a_wrong_method_names_the_right_one() -> None:
    async with running_http() as http:
        status, headers, answer = await get(http.port, "/v1/messages/")
    assert (status, headers["allow"]) == (405, "POST")
    assert json.loads(answer)["error"]["message"] == "/v1/messages takes POST"


async def test_a_key_comes_in_either_header() -> None:
    service = ScriptedService([says("a")])
    async with running_http(service, authenticate=only_key) as http:
        for headers in ({"api_key": "key"}, {"api_key": None, "auth_token": "key"}):
            async with client_of(http, **headers) as client:
                await client.messages.create(**body())
        assert (await asked(http, "x-api-key: key"))[0] == 200
        async with client_of(http, api_key="other") as client:
            with pytest.raises(anthropic.AuthenticationError) as caught:
                await client.messages.create(**body())
    assert caught.value.type == "authentication_error"


async def test_a_web_page_of_another_origin_is_refused_in_anthropics_shape() -> None:
    async with running_http(local_host="127.0.0.1") as http:
        status, _, answer = await asked(http, "origin: https://page.example")
    assert (status, answer["error"]["type"]) == (403, "permission_error")


async def test_models_are_told_to_those_who_name_a_version() -> None:
    async with running_http() as http:
        async with client_of(http) as client:
            models = [model async for model in client.models.list()]
            one = await client.models.retrieve(MODEL)
            with pytest.raises(anthropic.NotFoundError):
                await client.models.retrieve("other")
        assert models == [one]
        assert (one.id, one.type, one.lifecycle) == (MODEL, "model", "active")
        _, _, answer = await get(http.port, "/v1/models")
        assert json.loads(answer)["object"] == "list"
        status, _, answer = await get(http.port, "/v1/models/other", VERSION)
        assert (status, json.loads(answer)["type"]) == (404, "error")


async def test_a_prompt_is_counted_as_it_would_be_sent() -> None:
    async with running_http() as http, client_of(http) as client:
        prompt: Any = {"model": MODEL, "messages": HELLO, "system": "be brief"}
        count = await client.messages.count_tokens(**prompt)
        answer = await client.messages.create(**prompt, max_tokens=1)
        assert count.input_tokens == answer.usage.input_tokens
        plain = await client.messages.count_tokens(model=MODEL, messages=HELLO)
        assert plain.input_tokens < count.input_tokens
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.count_tokens(model="other", messages=HELLO)
        with pytest.raises(anthropic.BadRequestError, match="messages is empty"):
            await client.messages.count_tokens(model=MODEL, messages=[])


async def test_the_context_bounds_the_output_and_not_the_request() -> None:
    async with running_http() as http, client_of(http) as client:
        answer = await client.messages.create(**body(max_tokens=20_000))
        assert answer.stop_reason == "model_context_window_exceeded"
        assert answer.usage.output_tokens > 0
        long = [{"role": "user", "content": "a" * 5000}]
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long: "):
            await client.messages.create(**body(messages=long))


async def test_a_whole_answer_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_json, "MAX_ANSWER_BYTES", 100)
    service = ScriptedService([pb.Delta(text="a" * 60, token_ids=[1]), says("a" * 60)])
    async with running_http(service) as http, client_of(http) as client:
        with pytest.raises(anthropic.BadRequestError, match="does not fit 100 bytes"):
            await client.messages.create(**body())
        async with client.messages.stream(**body()) as stream:
            assert await stream.get_final_text() == "a" * 120


async def test_errors_have_the_names_that_were_sent() -> None:
    async with running_http() as http, client_of(http) as client:
        for parameters, name in (
            ({"stop_sequences": ["x" * 300]}, r"stop_sequences\[0\] has"),
            ({"extra_body": {"top_p": 2.0}}, "top_p is 2"),
            ({"messages": [{"role": "assistant", "content": "x"}]}, "messages do not fit"),
        ):
            with pytest.raises(anthropic.BadRequestError, match=name):
                await client.messages.create(**body(**parameters))
