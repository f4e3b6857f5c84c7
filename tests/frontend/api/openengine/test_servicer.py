"""OpenEngine over a real socket, by stubs of the same file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest

from frontend.api.grpc.server import GrpcServer
from frontend.api.openengine.response import Answer
from frontend.api.openengine.servicer import openengine
from frontend.engine.kv_events import KvEvents
from frontend.errors import Code, RequestError
from frontend.scheduler.kv_blocks import BlockPool
from frontend.scheduler.prefix_log import PrefixLog
from frontend.service.service import Service
from switchyard.openengine.v1 import openengine_pb2 as oe
from switchyard.openengine.v1 import openengine_pb2_grpc
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MAX_CONTEXT, MODEL, FakeEngine, answer_text, backend, queue_full
from tests.frontend.scheduler.test_prefix_log import BLOCK_SIZE, published
from tests.waiting import HANG_SECONDS, until


class Client:
    """Both stubs, and what is behind them."""

    def __init__(self, channel: grpc.aio.Channel, service: Service, engine: FakeEngine) -> None:
        self.inference = openengine_pb2_grpc.InferenceStub(channel)
        self.control = openengine_pb2_grpc.ControlStub(channel)
        self.service, self.engine = service, engine
        self.log, self.pool = PrefixLog(), BlockPool(16, BLOCK_SIZE)
        self.log.attach([self.pool])

    def open(self) -> None:
        self.service.open(backend(self.engine, kv_events=KvEvents(self.log)))

    async def generate(
        self, metadata: Sequence[tuple[str, str]] = (), **fields: Any
    ) -> list[oe.GenerateResponse]:
        request = oe.GenerateRequest(
            **({"request_id": "r", "prompt": "abc", "stopping": {"max_tokens": 4}} | fields)
        )
        call = self.inference.Generate(request, metadata=metadata, timeout=HANG_SECONDS)
        return [message async for message in call]


@contextlib.asynccontextmanager
async def serving(ready: bool = True) -> AsyncIterator[Client]:
    engine, service = FakeEngine(), Service(model=MODEL, version="1.2.3")
    server = GrpcServer(service, "127.0.0.1", 0, others=[openengine(service)])
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            client = Client(channel, service, engine)
            if ready:
                client.open()
            yield client
    finally:
        await server.stop(0.0)


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_a_stream_is_tokens_with_text_and_an_end_with_usage() -> None:
    async with serving() as client:
        *tokens, last = await client.generate()
    assert {each.request_id for each in (*tokens, last)} == {"r"}
    assert all(each.token.HasField("output_index") for each in tokens)
    text = "".join(each.token.text for each in tokens)
    ids = [token.token_id for each in tokens for token in each.token.tokens]
    assert text == answer_text("abc", 4)
    assert bytes(ids).decode() == text
    assert not any(each.HasField("usage") for each in tokens)
    assert last.finished.reason == oe.FINISH_REASON_LENGTH
    assert last.finished.HasField("output_index")
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 4)
    assert last.usage.total_tokens == 7


async def test_each_sample_ends_once_and_the_last_end_has_the_usage() -> None:
    async with serving() as client:
        messages = await client.generate(sampling={"num_sequences": 3})
    ends = [each for each in messages if each.WhichOneof("event") == "finished"]
    assert sorted(each.finished.output_index for each in ends) == [0, 1, 2]
    assert [each.HasField("usage") for each in messages] == [False] * (len(messages) - 1) + [True]
    assert messages[-1].usage.completion_tokens == 12
    over: set[int] = set()
    for each in messages:
        output = each.token if each.HasField("token") else each.finished
        assert output.output_index not in over, "nothing follows a sample's end"
        over |= {output.output_index} if each.HasField("finished") else set()


async def test_logprobs_stand_beside_their_tokens() -> None:
    """The fake engine's token t has log-probability -t, and t + 1 beside it."""
    async with serving() as client:
        prompt, *tokens, _ = await client.generate(
            response={
                "return_prompt_logprobs": True,
                "return_output_logprobs": True,
                "output_candidates": {"top_n": 1},
            }
        )
    first, *rest = prompt.prompt.tokens
    assert (first.token_id, first.HasField("logprob")) == (ord("a"), False)
    assert [(token.token_id, token.logprob) for token in rest] == [(98, -98.0), (99, -99.0)]
    token = tokens[0].token.tokens[0]
    assert (token.token_id, token.logprob) == (100, -100.0)
    assert [(each.token_id, each.logprob) for each in token.candidates] == [(101, -101.0)]


def test_a_stop_says_what_was_met() -> None:
    for delta, expected in (
        ({"finish_reason": pb.FINISH_REASON_EOS, "token_ids": [5, 7]}, {"eos_token_id": 7}),
        ({"finish_reason": pb.FINISH_REASON_STOP, "stop_token_id": 9}, {"stop_token_id": 9}),
        ({"finish_reason": pb.FINISH_REASON_STOP, "stop_text": "x"}, {"stop_text": "x"}),
    ):
        answer = Answer()
        messages = list(answer.add(pb.GenerateResponse(delta=delta)))
        messages += answer.add(pb.GenerateResponse(finished={}))
        assert messages[-1].finished.reason == oe.FINISH_REASON_STOP
        assert messages[-1].finished.stop_match == oe.StopMatch(**expected)


async def test_errors_are_statuses_before_the_first_event_and_messages_after_it() -> None:
    async with serving() as client:
        client.engine.refuse = queue_full()
        assert await code_of(client.generate()) is grpc.StatusCode.RESOURCE_EXHAUSTED
        client.engine.refuse = None
        for fields in ({"stopping": {"max_tokens": MAX_CONTEXT}}, {"lora_name": "x"}):
            refused = client.generate(**fields)
            assert await code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT
        assert await code_of(client.generate(model="other")) is grpc.StatusCode.NOT_FOUND
        client.engine.hold_at = 1
        client.engine.go.clear()
        reading = asyncio.create_task(client.generate())
        await until(lambda: "r" in client.engine.running)
        await until(lambda: client.engine.requests["r"].num_generated == 1)
        lost = RequestError(Code.UNAVAILABLE, "the workers were lost", reason="STREAM_LOST")
        client.engine.fail_all(lost)
        *_, last = await reading
    assert last.error == oe.EngineError(
        code=oe.ERROR_CODE_INTERNAL, message="the workers were lost", retryable=True
    )


async def test_priority_comes_as_metadata() -> None:
    async with serving() as client:
        await client.generate([("openengine-priority", "3")])
        assert client.engine.requests["r"].priority == -3


async def test_a_request_is_aborted_by_its_id_alone() -> None:
    async with serving() as client:
        client.engine.go.clear()
        reading = asyncio.create_task(client.generate())
        await until(lambda: "r" in client.engine.running)
        abort = client.control.Abort
        assert (await abort(oe.AbortRequest(request_id="r"))).status == oe.ABORT_STATUS_ABORTED
        assert (await reading)[-1].finished.reason == oe.FINISH_REASON_CANCELLED
        again = await abort(oe.AbortRequest(request_id="r"))
        assert again.status == oe.ABORT_STATUS_ALREADY_FINISHED
        for target in ({"all_requests": {}}, {"kv_session": {}}, {}):
            refused = abort(oe.AbortRequest(**target))
            assert await code_of(refused) is grpc.StatusCode.INVALID_ARGUMENT


async def test_facts_and_load() -> None:
    async with serving() as client:
        server = await client.control.GetServerInfo(oe.GetServerInfoRequest())
        model = await client.control.GetModelInfo(oe.GetModelInfoRequest(model=MODEL))
        load = await client.control.GetLoad(oe.GetLoadRequest())
        other = client.control.GetModelInfo(oe.GetModelInfoRequest(model="other"))
        assert await code_of(other) is grpc.StatusCode.NOT_FOUND
        await client.control.GetKvEventSources(oe.GetKvEventSourcesRequest())
    assert (server.engine_name, server.engine_version) == ("switchyard", "1.2.3")
    assert list(server.supported_models) == [MODEL]
    assert (server.schema_revision, server.minimum_client_revision) == (1, 1)
    assert (server.capacity.kv_block_size, server.capacity.total_kv_blocks) == (4, 64)
    assert (model.max_context_length, model.supports_text_input) == (MAX_CONTEXT, True)
    assert model.generation.output_logprobs.max_top_n == 20
    assert (load.running_requests, load.queued_requests, load.used_kv_blocks) == (1, 2, 32)
    assert load.instance_id == server.instance_id


async def test_health_follows_the_service() -> None:
    async with serving(ready=False) as client:

        async def state() -> int:
            return int((await client.control.Health(oe.HealthRequest())).state)

        assert await state() == oe.HEALTH_STATE_STARTING
        client.open()
        assert await state() == oe.HEALTH_STATE_READY
        client.service.drain()
        assert await state() == oe.HEALTH_STATE_DRAINING
        client.service.lose()
        assert await state() == oe.HEALTH_STATE_NOT_READY


async def test_kv_events_come_after_a_snapshot_or_from_now_on() -> None:
    async with serving() as client:

        def subscribe(**fields: Any) -> Any:
            request = oe.SubscribeKvEventsRequest(**fields)
            return client.control.SubscribeKvEvents(request, timeout=HANG_SECONDS)

        published(client.pool, [1, 1, 2, 2])
        whole, later = subscribe(include_snapshot=True), subscribe()
        batch = (await whole.read()).batch
        cleared, stored = batch.events
        assert cleared.HasField("all_blocks_cleared")
        assert list(stored.block_stored.token_ids) == [1, 1, 2, 2]
        assert stored.block_stored.block_size == BLOCK_SIZE
        first, second = stored.block_stored.block_hashes
        assert (len(first.value), first.encoding) == (16, "bytes")
        await until(lambda: client.service._backend.kv_events._num_readers == 2)
        published(client.pool, [1, 1, 2, 2, 3, 3])
        for call in (whole, later):
            change = (await call.read()).batch
            assert change.sequence_number == batch.sequence_number + 1
            [event] = change.events
            assert event.block_stored.parent_block_hash == second
            assert list(event.block_stored.token_ids) == [3, 3]
        old = subscribe(start_sequence_number=1).read()
        assert await code_of(old) is grpc.StatusCode.OUT_OF_RANGE
        rank = subscribe(data_parallel_ranks=[1]).read()
        assert await code_of(rank) is grpc.StatusCode.INVALID_ARGUMENT
