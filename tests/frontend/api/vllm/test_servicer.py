"""The router's protocol over a real socket: what its fields mean, and what it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import random
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as vllm

from frontend.api.grpc.server import GrpcServer
from frontend.api.vllm.request import generate_request
from frontend.api.vllm.servicer import vllm_engine
from frontend.api.vllm.tokenizer_archive import tokenizer_archive
from frontend.errors import RequestError
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MAX_CONTEXT, MODEL, FakeEngine, answer_text, backend, queue_full
from tests.waiting import HANG_SECONDS, until

PROMPT = b"abc"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a tokenizer, a template and weights."""
    for name, text in (
        ("config.json", '{"model_type": "fake_moe", "pad_token_id": 7}'),
        ("tokenizer.json", random.Random(0).randbytes(1_500_000).hex()),
        ("chat_template.jinja", "{{ messages }}"),
        ("model.safetensors", "secret"),
    ):
        (tmp_path / name).write_text(text)
    return tmp_path


@contextlib.asynccontextmanager
async def router_of(
    folder: Path, ready: bool = True
) -> AsyncIterator[tuple[vllm_engine_pb2_grpc.VllmEngineStub, FakeEngine, Service]]:
    """A stub as a router has it."""
    engine, service = FakeEngine(), Service(model=MODEL, version="1.2.3")
    if ready:
        service.open(backend(engine))
    server = GrpcServer(service, "127.0.0.1", 0, others=[vllm_engine(service, folder)])
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield vllm_engine_pb2_grpc.VllmEngineStub(channel), engine, service
    finally:
        await server.stop(0.0)


def router_request(stream: bool = True, **params: Any) -> vllm.GenerateRequest:
    return vllm.GenerateRequest(
        request_id="r",
        tokenized={"original_text": "not used", "input_ids": PROMPT},
        sampling_params={"max_tokens": 4, **params},
        stream=stream,
    )


async def collect(call: Any) -> list[Any]:
    return [message async for message in call]


async def test_a_stream_is_chunks_and_then_the_whole(folder: Path) -> None:
    async with router_of(folder) as (stub, engine, _):
        messages = await collect(stub.Generate(router_request()))
    assert engine.requests["r"].decoder is None, "the router makes the text"
    *chunks, last = messages
    expected = list(answer_text("abc", 4).encode())
    assert [token for each in chunks for token in each.chunk.token_ids] == expected
    assert [each.chunk.completion_tokens for each in chunks][-1] == 4
    assert {each.chunk.prompt_tokens for each in chunks} == {3}
    complete = last.complete
    assert list(complete.output_ids) == expected
    assert (complete.finish_reason, complete.completion_tokens) == ("length", 4)
    assert complete.prompt_tokens == 3


async def test_samples_come_apart_and_without_a_stream_whole(folder: Path) -> None:
    async with router_of(folder) as (stub, _, _):
        messages = await collect(stub.Generate(router_request(stream=False, n=2)))
    assert [each.WhichOneof("response") for each in messages] == ["complete", "complete"]
    texts = {each.complete.index: bytes(each.complete.output_ids).decode() for each in messages}
    assert texts == {0: answer_text("c", 4), 1: answer_text("d", 4)}


async def test_logprobs_are_columns(folder: Path) -> None:
    """The fake engine's token t has log-probability -t, and t + 1 beside it."""
    async with router_of(folder) as (stub, _, _):
        request = router_request(logprobs=1, prompt_logprobs=1, max_tokens=2)
        first, *_, last = await collect(stub.Generate(request))
    assert list(first.chunk.input_logprobs.token_ids) == list(PROMPT)
    values = first.chunk.input_logprobs.token_logprobs
    assert [each.HasField("value") for each in values] == [False, True, True]
    assert [each.value for each in values][1:] == [-98.0, -99.0]
    output = last.complete.output_logprobs
    assert list(output.token_ids) == [100, 101]
    assert list(output.token_logprobs) == [-100.0, -101.0]
    assert [list(top.token_ids) for top in output.top_logprobs] == [[101], [102]]


FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0.0}, {"sampling": {"temperature": 0.0}}),
    ({"top_p": 0.5, "top_k": 3}, {"sampling": {"top_p": 0.5, "top_k": 3}}),
    ({"repetition_penalty": 1.5}, {"sampling": {"repetition_penalty": 1.5}}),
    ({"seed": -1}, {"sampling": {"seed": 2**64 - 1}}),
    ({"logit_bias": {3: 1.0}}, {"sampling": {"logit_bias": {3: 1.0}}}),
    ({"stop_token_ids": [5], "ignore_eos": True},
     {"stop_conditions": {"stop_token_ids": [5], "ignore_eos": True}}),
    ({"min_tokens": 2}, {"stop_conditions": {"min_new_tokens": 2}}),
    ({"json_schema": "{}"}, {"constraint": {"json_schema": "{}"}}),
    ({"json_object": True}, {"constraint": {"json_object": True}}),
    ({"regex": "a"}, {"constraint": {"regex": "a"}}),
    ({"choice": {"choices": ["a", "b"]}}, {"constraint": {"grammar": 'start: "a" | "b"'}}),
    ({"n": 3}, {"n": 3}),
    ({"n": 1}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("params", "expected"), FIELDS)
def test_a_field_means_what_it_meant_there(
    params: dict[str, Any], expected: dict[str, Any]
) -> None:
    plain = generate_request(router_request())
    plain.MergeFrom(pb.GenerateRequest(**expected))
    assert generate_request(router_request(**params)) == plain


def test_unset_numbers_are_the_models_defaults() -> None:
    request = generate_request(vllm.GenerateRequest(tokenized={"input_ids": [1]}))
    assert request.sampling == pb.SamplingParams()
    assert not request.stop_conditions.HasField("max_new_tokens")


def test_stop_strings_are_found_here() -> None:
    request = generate_request(router_request(stop=["x"], include_stop_str_in_output=True))
    assert not request.output.skip_detokenize
    assert request.stop_conditions.include_stop


def test_a_prompt_is_cut_from_its_beginning() -> None:
    request = generate_request(router_request(truncate_prompt_tokens=2))
    assert bytes(request.prompt.tokens.ids) == b"bc"


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("mm_inputs", vllm.GenerateRequest(mm_inputs={})),
        ("kv_transfer_params_json", vllm.GenerateRequest(kv_transfer_params_json="{}")),
        ("sampling_params.structural_tag", router_request(structural_tag="{}")),
        ("sampling_params.logprobs", router_request(logprobs=-1)),
        ("sampling_params.logit_bias", router_request(logit_bias={-1: 1.0})),
        ("sampling_params.truncate_prompt_tokens", router_request(truncate_prompt_tokens=-1)),
    ],
)
def test_what_is_not_done_here_is_refused(field: str, request_: vllm.GenerateRequest) -> None:
    with pytest.raises(RequestError) as caught:
        generate_request(request_)
    assert caught.value.field == field


async def test_a_cancelled_and_an_aborted_request_end(folder: Path) -> None:
    async with router_of(folder) as (stub, engine, service):
        engine.go.clear()
        for end in ("cancel", "abort"):
            call = stub.Generate(router_request())
            reading = asyncio.create_task(collect(call))
            await until(lambda: "r" in engine.running)
            async with asyncio.timeout(HANG_SECONDS):
                if end == "cancel":
                    call.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await reading
                else:
                    await stub.Abort(vllm.AbortRequest(request_ids=["r", "other"]))
                    assert (await reading)[-1].complete.finish_reason == "abort"
                await service.idle()
        assert engine.aborted == ["r", "r"]


async def test_refusals_are_statuses(folder: Path) -> None:
    async with router_of(folder) as (stub, engine, _):
        engine.refuse = queue_full()
        for request, code in (
            (router_request(), grpc.StatusCode.RESOURCE_EXHAUSTED),
            (router_request(max_tokens=MAX_CONTEXT), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await collect(stub.Generate(request))
            assert caught.value.code() is code
        for call in (
            stub.Embed(vllm.EmbedRequest()),
            stub.FlushCache(common_pb2.FlushCacheRequest()),
            stub.StartProfile(common_pb2.StartProfileRequest()),
            stub.StopProfile(common_pb2.StopProfileRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_facts_and_load(folder: Path) -> None:
    async with router_of(folder) as (stub, _, _):
        model = await stub.GetModelInfo(vllm.GetModelInfoRequest())
        server = await stub.GetServerInfo(vllm.GetServerInfoRequest())
        loads = await stub.GetLoads(vllm.GetLoadsRequest())
    assert (model.served_model_name, model.model_type) == (MODEL, "fake_moe")
    assert (model.max_context_length, model.pad_token_id) == (MAX_CONTEXT, 7)
    assert json.loads(model.default_sampling_params_json) == {}
    assert str(folder) not in str(model), "where the model lies is nobody's business"
    assert (server.server_type, server.data_parallel_size) == ("vllm-grpc", 1)
    (load,) = loads.loads
    assert (load.num_running_reqs, load.num_waiting_reqs, load.token_usage) == (1, 2, 0.5)
    assert load.cache_hit_rate == 7 / 6


async def test_health_follows_the_service(folder: Path) -> None:
    async with router_of(folder, ready=False) as (stub, engine, service):
        with pytest.raises(grpc.aio.AioRpcError, match="loading") as caught:
            await stub.HealthCheck(vllm.HealthCheckRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        service.open(backend(engine))
        assert (await stub.HealthCheck(vllm.HealthCheckRequest())).healthy
        service.drain()
        health = await stub.HealthCheck(vllm.HealthCheckRequest())
        assert (health.healthy, "shutting down" in health.message) == (False, True)


async def test_the_tokenizer_travels_without_the_weights(folder: Path) -> None:
    async with router_of(folder) as (stub, _, _):
        chunks, again = [
            await collect(stub.GetTokenizer(common_pb2.GetTokenizerRequest())) for _ in range(2)
        ]
        (folder / "tokenizer.json").unlink()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(stub.GetTokenizer(common_pb2.GetTokenizerRequest()))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert len(chunks) == 2
    data = b"".join(chunk.data for chunk in chunks)
    assert [chunk.sha256 for chunk in chunks] == [""] * (len(chunks) - 1) + [
        hashlib.sha256(data).hexdigest()
    ]
    assert again[-1].sha256 == chunks[-1].sha256
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = set(archive.namelist())
        assert archive.read("chat_template.jinja") == b"{{ messages }}"
    assert names == {"config.json", "tokenizer.json", "chat_template.jinja"}


def test_a_router_gets_the_template_that_is_used(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text("[{{ messages }}]")
    for has_its_own in (True, False):
        data, _ = tokenizer_archive(folder, mine)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.read("chat_template.jinja") == mine.read_bytes()
        if has_its_own:
            (folder / "chat_template.jinja").unlink()
