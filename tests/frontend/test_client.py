"""The client against a server in this process: what it sends, cancels, tries again and raises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from frontend.api.grpc.server import GrpcServer
from switchyard import resumption
from switchyard.client import AsyncClient, AsyncStream, Client, ServerError, Stream
from switchyard.requests import Options, chat_request, generate_request
from switchyard.resumption import MAX_LOSSES
from switchyard.v1 import inference_pb2 as pb
from switchyard.v1 import inference_pb2_grpc
from tests.frontend.fakes import MODEL, Running, answer_text, queue_full, running_server
from tests.waiting import until


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with running_server() as server:
        yield server


@pytest.fixture
async def client(running: Running) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(running.address) as connection:
        yield connection


def test_options_find_their_places() -> None:
    request = generate_request(
        [1, 2], temperature=0.0, max_new_tokens=3, stop=["x"], echo=True, request_id="me"
    )
    assert request == pb.GenerateRequest(
        request_id="me",
        prompt={"tokens": {"ids": [1, 2]}},
        sampling={"temperature": 0.0},
        stop_conditions={"max_new_tokens": 3, "stop": ["x"]},
        output={"echo": True},
    )
    assert not generate_request("x").sampling.HasField("temperature")
    with pytest.raises(TypeError, match="no option max_tokens"):
        generate_request("x", max_tokens=3)


def test_every_option_has_its_place() -> None:
    """None is left out: what the proto has can be said by name."""
    request = generate_request(
        "x", n=2, priority=-1, max_queue_time=1.5, repetition_penalty=1.5, presence_penalty=1.0,
        frequency_penalty=0.5, logit_bias={3: 1.5}, allowed_token_ids=[1], bad_token_ids=[2],
        logprobs=True, top_logprobs=2, prompt_logprobs=True, json_schema={"type": "null"},
    )  # fmt: skip
    assert request == pb.GenerateRequest(
        prompt={"text": "x"},
        n=2,
        priority=-1,
        max_queue_time={"seconds": 1, "nanos": 500_000_000},
        sampling={
            "repetition_penalty": 1.5,
            "presence_penalty": 1.0,
            "frequency_penalty": 0.5,
            "logit_bias": {3: 1.5},
            "allowed_token_ids": [1],
            "bad_token_ids": [2],
        },
        output={"logprobs": True, "top_logprobs": 2, "prompt_logprobs": True},
        constraint={"json_schema": '{"type": "null"}'},
    )
    assert generate_request("x", regex="a").constraint.regex == "a"
    assert not generate_request("x", seed=1).HasField("constraint")
    messages = (
        pb.GenerateRequest, pb.SamplingParams, pb.StopConditions, pb.OutputOptions, pb.Constraint,
    )  # fmt: skip
    fields = {name for message in messages for name in message.DESCRIPTOR.fields_by_name}
    parts = {"prompt", "sampling", "stop_conditions", "output", "constraint", "generated"}
    assert set(Options.__annotations__) == fields - parts


def test_tools_and_their_calls_become_turns() -> None:
    request = chat_request(
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "name": "add", "arguments": {"a": 1}}],
            },
            {"role": "tool", "content": "2", "tool_call_id": "c"},
        ],
        tools=[{"name": "add"}],
    )
    [call] = request.messages[0].tool_calls
    assert call == pb.ToolCall(id="c", name="add", arguments_json='{"a": 1}')
    assert request.messages[1].tool_call_id == "c"
    assert request.tools_json == '[{"name": "add"}]'


def test_messages_become_turns() -> None:
    request = chat_request(
        [{"role": "user", "content": "hi"}], {"a": 1}, seed=3, parse_special_tokens=True
    )
    assert request.parse_special_tokens
    assert request.messages[0] == pb.ChatMessage(role=pb.ROLE_USER, content="hi")
    assert request.template_kwargs_json == '{"a": 1}'
    assert request.request.sampling.seed == 3


async def test_async_streams(client: AsyncClient) -> None:
    async with client.generate("abc", max_new_tokens=5) as stream:
        text = "".join([delta.text async for delta in stream])
    assert text == answer_text("abc", 5)
    assert stream.started.model == MODEL
    assert stream.finished.usage.completion_tokens == 5
    async with client.chat([{"role": "user", "content": "hi"}], max_new_tokens=2) as stream:
        assert "".join([delta.text async for delta in stream]) == "jk"
    assert (await client.complete("abc", max_new_tokens=3)).outputs[0].text == "def"
    assert (await client.model_info()).has_chat_template
    assert await client.abort("nobody") == []


async def test_leaving_early_aborts(running: Running, client: AsyncClient) -> None:
    running.engine.go.clear()
    running.engine.hold_at = 3
    async with client.generate("abc", max_new_tokens=50, request_id="left") as stream:
        async for _ in stream:
            break
    await asyncio.wait_for(running.service.idle(), 2.0)
    assert running.engine.aborted == ["left"]


async def test_errors_carry_what_the_server_said(running: Running, client: AsyncClient) -> None:
    with pytest.raises(ServerError) as caught:
        async with client.generate("abc", top_p=2.0) as stream:
            [delta async for delta in stream]
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "sampling.top_p")
    running.engine.refuse = queue_full()
    with pytest.raises(ServerError) as caught:
        await client.complete("abc")
    assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.5)


async def test_the_sync_client(running: Running) -> None:
    def talk() -> None:
        with Client(running.address) as client:
            with client.generate("abc", max_new_tokens=5) as stream:
                assert "".join(delta.text for delta in stream) == answer_text("abc", 5)
            assert stream.finished.usage.prompt_tokens == 3
            with client.chat([{"role": "user", "content": "hi"}], max_new_tokens=2) as stream:
                assert "".join(delta.text for delta in stream) == "jk"
            assert client.complete("abc", max_new_tokens=3).outputs[0].text == "def"
            assert client.model_info().model == MODEL
            assert client.abort("nobody") == []
            with pytest.raises(ServerError) as caught:
                client.complete("")
            assert caught.value.field == "request.prompt.text"
            running.engine.hold_at = 3
            running.engine.go.clear()
            with client.generate("abc", max_new_tokens=50, request_id="left") as stream:
                next(iter(stream))

    await asyncio.to_thread(talk)
    await asyncio.wait_for(running.service.idle(), 2.0)
    assert running.engine.aborted == ["left"]


class Flaky(inference_pb2_grpc.InferenceServiceServicer):
    """UNAVAILABLE for the first calls, before their first message."""

    def __init__(self, num_refusals: int) -> None:
        self.num_calls = 0
        self._num_refusals = num_refusals

    async def _refuse(self, context: Any) -> None:
        self.num_calls += 1
        if self.num_calls <= self._num_refusals:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        await self._refuse(context)
        await context.write(pb.GenerateResponse(delta={"text": "ok"}))

    async def Complete(  # noqa: N802
        self, request: pb.CompleteRequest, context: Any
    ) -> pb.CompleteResponse:
        await self._refuse(context)
        return pb.CompleteResponse(outputs=[pb.Delta(text="ok")])


async def generated(address: str, **options: Any) -> str:
    async with AsyncClient(address, **options) as client, client.generate("x") as stream:
        return "".join([delta.text async for delta in stream])


async def completed(address: str, **options: Any) -> str:
    async with AsyncClient(address, **options) as client:
        return (await client.complete("x")).outputs[0].text


async def completed_in_a_thread(address: str, **options: Any) -> str:
    def complete() -> str:
        with Client(address, **options) as client:
            return client.complete("x").outputs[0].text

    return await asyncio.to_thread(complete)


@pytest.mark.parametrize("ask", [generated, completed, completed_in_a_thread])
@pytest.mark.parametrize(
    ("num_refusals", "options", "num_calls"),
    [(3, {}, 4), (MAX_LOSSES, {}, MAX_LOSSES), (1, {"resume_seconds": 0.0}, 1)],
)
async def test_what_was_lost_is_tried_again(
    num_refusals: int,
    options: dict[str, Any],
    num_calls: int,
    ask: Callable[..., Awaitable[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resumption, "_FIRST_PAUSE", 0.001)
    flaky, server = Flaky(num_refusals), grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(flaky, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        if num_calls > num_refusals:
            assert await ask(address, **options) == "ok"
        else:
            with pytest.raises(ServerError, match="not now"):
                await ask(address, **options)
    finally:
        await server.stop(None)
    assert flaky.num_calls == num_calls


def hold(running: Running) -> None:
    """Streams stand still after three tokens."""
    running.engine.go.clear()
    running.engine.hold_at = 3


async def lose_server(running: Running, stream: Stream | AsyncStream) -> None:
    """Return once a stream waits for a server, for its own is no more."""
    await running.server.stop(0.0)
    await until(lambda: stream._losses._num_tries)


async def test_a_stream_goes_on_with_the_next_server_at_its_address(
    running: Running, client: AsyncClient
) -> None:
    hold(running)
    async with client.generate("abc", max_new_tokens=9) as stream:
        deltas = aiter(stream)
        text = (await anext(deltas)).text
        rest = asyncio.create_task(anext(deltas))
        await lose_server(running, stream)
        running.engine.go.set()
        host, _, port = running.address.rpartition(":")
        following = GrpcServer(running.service, host, int(port))
        await following.start()
        try:
            text += (await rest).text + "".join([delta.text async for delta in deltas])
        finally:
            await following.stop(0.0)
    assert text == answer_text("abc", 9)
    assert stream.finished.usage.completion_tokens == 9
    assert stream.resumes == 1


@pytest.mark.parametrize("how", ["stream", "reader", "client"])
async def test_a_stream_that_waits_can_be_cancelled(
    how: str, running: Running, client: AsyncClient
) -> None:
    hold(running)
    async with client.generate("abc", max_new_tokens=9) as stream:
        reader = asyncio.create_task(_read(stream))
        await until(lambda: stream.started.request_id)
        await lose_server(running, stream)
        if how == "stream":
            stream.cancel()
        elif how == "reader":
            reader.cancel()
        else:
            await client.close()
        with pytest.raises(asyncio.CancelledError):
            await reader


async def _read(stream: AsyncStream) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("how", ["stream", "client"])
async def test_one_without_asyncio_too(how: str, running: Running) -> None:
    hold(running)
    with Client(running.address) as client, client.generate("abc", max_new_tokens=9) as stream:
        reader = asyncio.create_task(asyncio.to_thread(list, stream))
        await until(lambda: stream.started.request_id)
        await lose_server(running, stream)
        if how == "stream":
            stream.cancel()
        else:
            client.close()
        with pytest.raises(ServerError) as caught:
            await reader
    assert caught.value.code is grpc.StatusCode.CANCELLED


@pytest.mark.slow
async def test_a_deadline_holds_while_a_stream_waits(running: Running, client: AsyncClient) -> None:
    hold(running)
    async with client.generate("abc", max_new_tokens=9, timeout=2.0) as stream:
        reader = asyncio.create_task(_read(stream))
        await until(lambda: stream.started.request_id)
        await lose_server(running, stream)
        with pytest.raises(ServerError) as caught:
            await reader
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
