"""The gRPC face, over a real connection to a server in this process with a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontend.api.grpc.health import LIVENESS, READINESS, SERVICE_NAME
from frontend.api.grpc.server import GrpcServer
from frontend.errors import Code, RequestError
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from switchyard.v1 import inference_pb2_grpc
from tests.frontend.fakes import (
    MAX_CONTEXT,
    MODEL,
    VOCAB_SIZE,
    Running,
    answer_text,
    queue_full,
    running_server,
)
from tests.waiting import HANG_SECONDS, turns

SERVICE = f"/{SERVICE_NAME}"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with running_server() as server:
        yield server


@pytest.fixture
async def channel(running: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.address) as connection:
        yield connection


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> inference_pb2_grpc.InferenceServiceStub:
    return inference_pb2_grpc.InferenceServiceStub(channel)


def generate_request(num_tokens: int = 4, **fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        prompt={"text": "abc"}, stop_conditions={"max_new_tokens": num_tokens}, **fields
    )


def details_of(error: grpc.aio.AioRpcError) -> dict[str, object]:
    kinds = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.RetryInfo,
    )
    found = {}
    for packed in rpc_status.from_call(error).details:
        for kind in kinds:
            detail = kind()
            if packed.Unpack(detail):
                found[kind.__name__] = detail
    return found


async def fails(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def field_of(error: grpc.aio.AioRpcError) -> str:
    """The path that BadRequest gives."""
    violation = details_of(error)["BadRequest"].field_violations[0]  # type: ignore[attr-defined]
    assert violation.description == error.details()
    return str(violation.field)


async def read_all(call) -> list[pb.GenerateResponse]:
    return [message async for message in call]


async def test_generate_streams(stub) -> None:
    events = await read_all(stub.Generate(generate_request(6)))
    assert "".join(event.delta.text for event in events) == answer_text("abc", 6)
    assert events[0].started.model == MODEL
    assert events[-1].finished.usage.completion_tokens == 6


async def test_every_method_answers(stub) -> None:
    chat = pb.ChatRequest(
        messages=[{"role": pb.ROLE_USER, "content": "hi"}], request=generate_request(2)
    )
    chat.request.ClearField("prompt")
    events = [message.response async for message in stub.Chat(chat)]
    assert "".join(event.delta.text for event in events) == "jk"
    whole = await stub.Complete(pb.CompleteRequest(request=generate_request(5)))
    assert whole.outputs[0].text == answer_text("abc", 5)
    ids = (await stub.Tokenize(pb.TokenizeRequest(text="abc"))).token_ids
    assert list(ids) == [97, 98, 99]
    assert (await stub.Detokenize(pb.DetokenizeRequest(token_ids=ids))).text == "abc"
    assert (await stub.GetModelInfo(pb.GetModelInfoRequest())).model == MODEL
    assert (await stub.GetServerInfo(pb.GetServerInfoRequest())).version == "1.2.3"
    assert (await stub.GetLoad(pb.GetLoadRequest())).preemptions == 5
    assert not (await stub.GetExpertLoad(pb.GetExpertLoadRequest())).layers
    assert not (await stub.Abort(pb.AbortRequest(request_ids=["x"]))).aborted_request_ids


async def test_a_refusal_carries_its_details(stub) -> None:
    error = await fails(read_all(stub.Generate(generate_request(sampling={"top_p": 2.0}))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = details_of(error)
    assert details["ErrorInfo"].reason == "INVALID_FIELD"
    assert details["ErrorInfo"].domain == "switchyard"
    assert details["BadRequest"].field_violations[0].field == "sampling.top_p"
    assert "RetryInfo" not in details


FIELDS: list[tuple[str, pb.GenerateRequest]] = [
    ("sampling.top_p", generate_request(sampling={"top_p": 2.0})),
    ("stop_conditions.stop[1]", pb.GenerateRequest(stop_conditions={"stop": ["x", ""]})),
    ("stop_conditions.max_new_tokens", generate_request(num_tokens=1 << 20)),
    ("constraint.regex", generate_request(constraint={"regex": "("})),
    ("constraint", generate_request(constraint={"grammar": 'start: start "a"'})),
    ("model", generate_request(model="another")),
    ("request_id", generate_request(request_id="\n")),
]


@pytest.mark.parametrize(("field", "request_"), FIELDS)
async def test_a_fields_path_is_one_of_the_message_that_was_sent(
    running: Running, field: str, request_: pb.GenerateRequest
) -> None:
    """Below ``request`` once, in the field and in the text, where a message wraps the request."""
    chat = pb.ChatRequest(messages=[{"role": pb.ROLE_USER, "content": "hi"}], request=request_)
    chat.request.ClearField("prompt")
    async with grpc.aio.insecure_channel(running.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        plain = await fails(read_all(stub.Generate(request_)))
        wrapped = [
            await fails(read_all(stub.Chat(chat))),
            await fails(stub.Complete(pb.CompleteRequest(request=request_))),
        ]
    assert field_of(plain) == field
    for error in wrapped:
        assert field_of(error) == f"request.{field}"
        assert "request.request." not in error.details()
        if plain.details().startswith(f"{field} "):
            assert error.details().startswith(f"request.{field} ")


async def test_a_chats_own_fields_stand_beside_its_request(stub) -> None:
    chat = pb.ChatRequest(messages=[{"content": "hi"}])
    error = await fails(read_all(stub.Chat(chat)))
    assert field_of(error) == "messages[0].role"
    assert error.details().startswith("messages[0].role is 0")
    chat = pb.ChatRequest(messages=[{"role": pb.ROLE_USER}], request=generate_request())
    error = await fails(read_all(stub.Chat(chat)))
    assert field_of(error) == "request.prompt"
    assert error.details() == "request.prompt is set; a chat's prompt is its messages"


async def test_every_code_reaches_the_client(running: Running, stub) -> None:
    for code in Code:
        running.engine.refuse = RequestError(code, "told so", reason="WHY")
        error = await fails(stub.Complete(pb.CompleteRequest(request=generate_request())))
        assert (error.code().name, error.details()) == (code.name, "told so")


async def test_a_full_queue_says_when_to_come_back(running: Running, stub) -> None:
    running.engine.refuse = queue_full()
    error = await fails(read_all(stub.Generate(generate_request())))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(error)["RetryInfo"].retry_delay.ToMilliseconds() == 1500


async def test_a_bug_outside_a_request_is_opaque(
    running: Running, stub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise OSError("secret /path")

    monkeypatch.setattr(running.engine, "load", broken)
    error = await fails(stub.GetLoad(pb.GetLoadRequest()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    request_id = error.details().rsplit(" ", 1)[1]
    assert request_id in caplog.text
    assert "secret /path" in caplog.text


MALFORMED = [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", bytes(range(1, 40))]


@pytest.mark.parametrize("data", MALFORMED)
@pytest.mark.parametrize("method", ["Generate", "Complete", "Tokenize"])
async def test_malformed_messages_are_the_callers_fault(
    channel: grpc.aio.Channel, method: str, data: bytes
) -> None:
    if method == "Generate":
        call = read_all(channel.unary_stream(f"{SERVICE}/{method}")(data))
    else:
        call = channel.unary_unary(f"{SERVICE}/{method}")(data)
    error = await fails(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error)["ErrorInfo"].reason == "MALFORMED_MESSAGE"


async def test_messages_of_very_many_fields_are_refused(channel: grpc.aio.Channel) -> None:
    call = channel.unary_stream(f"{SERVICE}/Chat")(b"\n\x00" * 100_000)
    error = await fails(read_all(call))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error)["ErrorInfo"].reason == "TOO_MANY_FIELDS"


async def test_large_messages_are_refused(stub) -> None:
    prompt = pb.Prompt(text="a" * (9 << 20))
    error = await fails(read_all(stub.Generate(pb.GenerateRequest(prompt=prompt))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.GetModelInfo(pb.GetModelInfoRequest())).model == MODEL


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    error = await fails(channel.unary_unary(f"{SERVICE}/Nothing")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


# ---- any request: an answer or INVALID_ARGUMENT ----

FLOATS = st.one_of(st.floats(width=32), st.sampled_from([0.0, 0.5, 1.0, math.nan, math.inf]))
UINT32 = st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1))
TEXT = st.text(max_size=MAX_CONTEXT)


def some(**fields: st.SearchStrategy) -> st.SearchStrategy[dict]:
    """Any of the fields, mostly few."""
    return st.fixed_dictionaries({}, optional=fields)


SAMPLING = some(
    temperature=FLOATS, top_p=FLOATS, top_k=UINT32, min_p=FLOATS, repetition_penalty=FLOATS,
    presence_penalty=FLOATS, frequency_penalty=FLOATS, seed=st.integers(0, 2**64 - 1),
    logit_bias=st.dictionaries(UINT32, FLOATS, max_size=2),
)  # fmt: skip
STOPS = some(
    max_new_tokens=UINT32, min_new_tokens=UINT32, stop=st.lists(TEXT, max_size=18),
    stop_token_ids=st.lists(UINT32, max_size=3), ignore_eos=st.booleans(),
    include_stop=st.booleans(),
)  # fmt: skip
OUTPUT = some(
    logprobs=st.booleans(), top_logprobs=UINT32, prompt_logprobs=st.booleans(),
    skip_detokenize=st.booleans(), keep_special_tokens=st.booleans(),
    min_tokens_per_message=UINT32, echo=st.booleans(),
)  # fmt: skip
DURATION = some(seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1))
PROMPT = st.one_of(
    st.builds(lambda text: pb.Prompt(text=text), TEXT),
    st.builds(
        lambda ids: pb.Prompt(tokens={"ids": ids}),
        st.lists(st.integers(0, VOCAB_SIZE), max_size=MAX_CONTEXT),
    ),
    st.just(pb.Prompt()),
)
REQUEST = st.builds(
    lambda prompt, fields: pb.GenerateRequest(prompt=prompt, **fields),
    PROMPT,
    some(
        model=st.sampled_from(["", MODEL]), request_id=TEXT, sampling=SAMPLING,
        stop_conditions=STOPS, output=OUTPUT, n=st.one_of(st.just(1), UINT32),
        priority=st.sampled_from([0, 0, -1]), max_queue_time=DURATION,
    ),
)  # fmt: skip
CHAT = st.builds(
    lambda messages, request, kwargs: pb.ChatRequest(
        messages=messages, request=request, template_kwargs_json=kwargs
    ),
    st.lists(
        st.builds(
            lambda role, content: pb.ChatMessage(role=role, content=content),
            st.integers(-1, 6),
            st.text(max_size=8),
        ),
        max_size=3,
    ),
    REQUEST,
    st.sampled_from(["", "{}", '{"a": 1}', "[]", "{", '{"tokenize": true}', "NaN", "1e999"]),
)


@pytest.mark.slow
def test_any_request_gets_an_answer_or_invalid_argument() -> None:
    answers = set()

    async def attempt(stub, message) -> None:
        if isinstance(message, pb.ChatRequest):
            call = stub.Chat(message)
        else:
            call = stub.Generate(message)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await read_all(call)
        answers.add(await call.code())
        if await call.code() is not grpc.StatusCode.OK:
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT, await call.details()

    with asyncio.Runner() as runner:
        server = running_server()
        running = runner.run(server.__aenter__())

        async def connect():
            return grpc.aio.insecure_channel(running.address)

        connection = runner.run(connect())
        stub = inference_pb2_grpc.InferenceServiceStub(connection)

        @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.one_of(REQUEST, CHAT))
        def check(message) -> None:
            runner.run(attempt(stub, message))

        check()
        assert not running.engine.running
        runner.run(connection.close())
        runner.run(server.__aexit__(None, None, None))
    assert answers == {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


# ---- clients that leave, or are slow ----


async def test_a_cancelled_call_aborts_its_request(running: Running, stub) -> None:
    running.engine.go.clear()
    call = stub.Generate(generate_request(request_id="gone"))
    assert (await call.read()).started.request_id == "gone"
    call.cancel()
    await asyncio.wait_for(running.service.idle(), 2.0)
    assert running.engine.aborted == ["gone"]


async def test_a_deadline_aborts_its_request(running: Running, stub) -> None:
    running.engine.go.clear()
    error = await fails(stub.Complete(pb.CompleteRequest(request=generate_request()), timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(running.service.idle(), 2.0)
    assert len(running.engine.aborted) == 1


async def test_a_lost_connection_aborts_its_request(running: Running) -> None:
    running.engine.go.clear()
    async with grpc.aio.insecure_channel(running.address) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(generate_request())
        await call.read()
        await channel.close(grace=None)
    await asyncio.wait_for(running.service.idle(), 2.0)
    assert len(running.engine.aborted) == 1


async def test_a_slow_writer_gets_what_has_gathered(running: Running) -> None:
    stream = running.service.generate(generate_request(40, request_id="slow"))
    await anext(stream)
    sizes = []
    async for event in stream:
        if event.HasField("delta"):
            sizes.append(len(event.delta.token_ids))
            await turns(10)  # the client's transport is full meanwhile
    assert sum(sizes) == 40
    assert len(sizes) < 10


# ---- health, reflection, start and stop ----


async def check(channel: grpc.aio.Channel, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status


async def test_health_follows_readiness() -> None:
    async with (
        running_server(ready=False) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        assert [await check(channel, name) for name in READINESS] == [NOT_SERVING] * 2
        assert await check(channel, LIVENESS) == SERVING
        error = await fails(check(channel, "other"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE_NAME)
        )
        assert (await watch.read()).status == NOT_SERVING
        await running.server.health.set_ready(True)
        assert (await watch.read()).status == SERVING
        assert [await check(channel, name) for name in READINESS] == [SERVING] * 2
        await running.server.health.set_ready(False)
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()


async def test_an_open_watch_does_not_hold_the_stop() -> None:
    async with (
        running_server() as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        await asyncio.wait_for(running.server.stop(3600.0), HANG_SECONDS)
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.code() is grpc.StatusCode.UNAVAILABLE


async def test_starting_is_unavailable_before_any_message() -> None:
    async with (
        running_server(ready=False) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        error = await fails(read_all(stub.Generate(generate_request())))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert details_of(error)["ErrorInfo"].reason == "STARTING"
        assert "RetryInfo" in details_of(error)


async def test_a_drain_refuses_new_and_finishes_old(running: Running, stub) -> None:
    running.engine.go.clear()
    call = aiter(stub.Generate(generate_request(8)))
    assert (await anext(call)).HasField("started")
    running.service.drain()
    error = await fails(read_all(stub.Generate(generate_request())))
    assert details_of(error)["ErrorInfo"].reason == "DRAINING"
    running.engine.go.set()
    events = await read_all(call)
    assert "".join(event.delta.text for event in events) == answer_text("abc", 8)
    assert events[-1].HasField("finished")
    await asyncio.wait_for(running.service.idle(), 1.0)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_what_is_public(channel: grpc.aio.Channel, version: str) -> None:
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = [service.name for service in (await call.read()).list_services_response.service]
    assert names == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        SERVICE_NAME,
    ]
    for name in names:
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
        answer = await call.read()
        assert answer.file_descriptor_response.file_descriptor_proto, name
    internal = "switchyard.worker.v1.WorkerService"
    await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=internal))
    assert (await call.read()).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_malformed_reflection_is_the_callers_fault(channel: grpc.aio.Channel) -> None:
    call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
    await call.write(b"\xff")
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_port_in_use_is_one_clear_line(running: Running) -> None:
    host, _, port = running.address.rpartition(":")
    second = GrpcServer(Service(model=MODEL, version="0"), host, int(port))
    with pytest.raises(OSError, match=f"cannot listen on {running.address}: Address already in"):
        await second.start()
