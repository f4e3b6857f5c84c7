"""vLLM's own protocol over a real socket, by stubs of the same file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from frontend.api.grpc.server import GrpcServer
from frontend.api.vllm_native.response import Answer
from frontend.api.vllm_native.servicer import vllm_native
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from switchyard.vllm import native_pb2 as vllm
from switchyard.vllm import native_pb2_grpc
from tests.frontend.fakes import MAX_CONTEXT, MODEL, FakeEngine, answer_text, backend, queue_full
from tests.waiting import HANG_SECONDS, until


class Client:
    """Both stubs, and the engine behind them."""

    def __init__(self, channel: grpc.aio.Channel, engine: FakeEngine) -> None:
        self._inference = native_pb2_grpc.InferenceStub(channel)
        self.control = native_pb2_grpc.ControlStub(channel)
        self.engine = engine

    async def whole(self, **fields: Any) -> vllm.GenerateResponse:
        call = self._inference.Generate(request(**fields), timeout=HANG_SECONDS)
        answer: vllm.GenerateResponse = await call
        return answer

    def stream(self, metadata: Any = (), **fields: Any) -> Any:
        return self._inference.GenerateStream(
            request(**fields), metadata=metadata, timeout=HANG_SECONDS
        )


def request(**fields: Any) -> vllm.GenerateRequest:
    defaults = {"request_id": "r", "text": "abc", "stopping": {"max_new_tokens": 4}}
    return vllm.GenerateRequest(**(defaults | fields))


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Client]:
    engine, service = FakeEngine(), Service(model=MODEL, version="1.2.3")
    service.open(backend(engine))
    server = GrpcServer(service, "127.0.0.1", 0, others=[vllm_native(service)])
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Client(channel, engine)
    finally:
        await server.stop(0.0)


async def test_a_whole_answer_has_prompt_output_and_end() -> None:
    async with serving() as client:
        answer = await client.whole(response={"output_token_ids": True, "prompt_token_ids": True})
    assert answer.prompt_info.num_prompt_tokens == 3
    assert bytes(answer.prompt_info.token_ids) == b"abc"
    text = answer_text("abc", 4)
    assert answer.outputs.text == text
    assert bytes(answer.outputs.token_ids).decode() == text
    assert answer.outputs.num_tokens == 4
    end = answer.outputs.finish_info
    assert (end.finish_reason, end.num_output_tokens) == (vllm.FinishInfo.LENGTH, 4)


async def test_a_stream_is_the_prompt_and_then_what_is_new() -> None:
    async with serving() as client:
        first, *rest = [each async for each in client.stream()]
    assert first.prompt_info.num_prompt_tokens == 3
    assert not first.HasField("outputs")
    assert not first.prompt_info.token_ids, "they were not asked for"
    assert not any(each.HasField("prompt_info") for each in rest)
    assert "".join(each.outputs.text for each in rest) == answer_text("abc", 4)
    assert not any(each.outputs.token_ids for each in rest)
    assert [each.outputs.HasField("finish_info") for each in rest].count(True) == 1
    assert rest[-1].outputs.finish_info.num_output_tokens == 4


async def test_streams_hold_several_outputs() -> None:
    async with serving() as client:
        texts = {0: "", 1: ""}
        async for each in client.stream(sampling={"num_sequences": 2}):
            if each.HasField("outputs"):
                texts[each.outputs.index] += each.outputs.text
    assert texts == {0: answer_text("c", 4), 1: answer_text("d", 4)}


async def test_logprobs_and_candidates_stand_beside_their_tokens() -> None:
    """The fake engine's token t has log-probability -t, and t + 1 beside it."""
    async with serving() as client:
        answer = await client.whole(
            response={
                "prompt_logprobs": True,
                "output_logprobs": True,
                "output_candidates": {"top_n": 1},
            }
        )
    assert list(answer.prompt_info.logprobs) == [0.0, -98.0, -99.0]
    assert list(answer.outputs.logprobs) == [-100.0, -101.0, -102.0, -103.0]
    candidates = [[other.id for other in each.tokens] for each in answer.outputs.candidate_tokens]
    assert candidates == [[101], [102], [103], [104]]


def test_the_token_itself_is_no_candidate() -> None:
    top = {"token_ids": [5, 6], "logprobs": [-0.5, -1.0]}
    delta = pb.Delta(token_ids=[5], logprobs=[-0.5], top_logprobs=[top])
    [message] = Answer(vllm.ResponseOptions()).add(pb.GenerateResponse(delta=delta))
    [info] = message.outputs.candidate_tokens
    assert [(each.id, each.logprob) for each in info.tokens] == [(6, -1.0)]


def test_a_stop_says_what_was_met() -> None:
    for delta, expected in (
        ({"finish_reason": pb.FINISH_REASON_EOS, "token_ids": [5, 7]}, {"eos_token_id": 7}),
        ({"finish_reason": pb.FINISH_REASON_STOP, "stop_token_id": 9}, {"stop_token_id": 9}),
        ({"finish_reason": pb.FINISH_REASON_STOP, "stop_text": "x"}, {"stop_string": "x"}),
    ):
        [message] = Answer(vllm.ResponseOptions()).add(pb.GenerateResponse(delta=delta))
        end = message.outputs.finish_info
        assert end.finish_reason == vllm.FinishInfo.STOP
        assert {end.WhichOneof("stop_reason")} == set(expected)
        assert getattr(end, *expected) == next(iter(expected.values()))


async def test_refusals_are_statuses() -> None:
    async with serving() as client:
        client.engine.refuse = queue_full()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.whole()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        client.engine.refuse = None
        for fields, code in (
            ({"lora_name": "x"}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"model": "other"}, grpc.StatusCode.NOT_FOUND),
            ({"metadata": [("x-data-parallel-rank", "1")]}, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.stream(**fields).read()
            assert caught.value.code() is code


async def test_an_aborted_and_a_dropped_stream_end_their_request() -> None:
    async with serving() as client:
        client.engine.go.clear()
        for end in ("abort", "cancel"):
            call = client.stream()
            reading = asyncio.create_task(collect(call))
            await until(lambda: "r" in client.engine.running)
            if end == "abort":
                await client.control.Abort(vllm.AbortRequest(request_ids=["r"]))
                last = (await reading)[-1].outputs.finish_info
                assert last.finish_reason == vllm.FinishInfo.ABORTED
            else:
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
            await until(lambda: "r" not in client.engine.running)
        assert client.engine.aborted == ["r", "r"]


async def collect(call: Any) -> list[Any]:
    return [message async for message in call]


async def test_facts() -> None:
    async with serving() as client:
        server = await client.control.GetServerInfo(vllm.GetServerInfoRequest())
        model = await client.control.GetModelInfo(vllm.GetModelInfoRequest())
        await client.control.GetKvEventSources(vllm.GetKvEventSourcesRequest())
    assert (server.engine_version, server.max_model_len) == ("1.2.3", MAX_CONTEXT)
    assert (server.kv_block_size, server.total_kv_blocks) == (4, 64)
    assert server.parallelism.data_parallel_size == 1
    assert (model.served_model_name, model.supports_text_input) == (MODEL, True)
