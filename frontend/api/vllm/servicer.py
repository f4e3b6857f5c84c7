"""`vllm.grpc.engine.VllmEngine`: the protocol that public routers speak.

Owns the methods of that protocol. `frontend.service` answers every one; `request.py` and
`response.py` translate. A method that this service does not have is UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc
from smg_grpc_proto.generated import vllm_engine_pb2 as vllm

from frontend.api.grpc.interceptor import caller_of
from frontend.api.vllm.kv_events import kv_event_batch
from frontend.api.vllm.request import generate_request
from frontend.api.vllm.response import Answer
from frontend.api.vllm.tokenizer_archive import tokenizer_archive
from frontend.bounds import MAX_MESSAGE_BYTES
from frontend.errors import Code, RequestError, answer_too_large
from frontend.processing.tokenizer_files import VOCABULARIES
from frontend.service.service import Service
from switchyard.model_files import read_object
from switchyard.v1 import inference_pb2 as pb

SERVICE_NAME = "vllm.grpc.engine.VllmEngine"
# The kind of engine that routers know this protocol by.
SERVER_TYPE = "vllm-grpc"
CHUNK_BYTES = 1 << 20
INT32_MAX = 2**31 - 1


def vllm_engine(
    service: Service, folder: Path, chat_template: Path | None = None
) -> Callable[[grpc.aio.Server], None]:
    """Adds the protocol to a server; for the arguments see `VllmEngineServicer`."""
    servicer = VllmEngineServicer(service, folder, chat_template)
    return functools.partial(vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server, servicer)


class VllmEngineServicer(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]
    """One method per RPC; streams are written to the context, as in `frontend.api.grpc.server`.

    Args:
        folder: the model's, for its tokenizer and config.json.
        chat_template: a file whose template goes before the folder's.
    """

    def __init__(self, service: Service, folder: Path, chat_template: Path | None = None) -> None:
        self._service = service
        self._folder = folder
        self._chat_template = chat_template
        self._started = time.monotonic()
        self._last_request = 0.0

    async def Generate(self, request: vllm.GenerateRequest, context: Any) -> None:  # noqa: N802
        """Write the stream of `Service.generate` in the router's messages."""
        self._last_request = time.time()
        generation = generate_request(request)
        answer = Answer(
            generation.prompt.tokens.ids if generation.output.prompt_logprobs else (),
            request.stream,
        )
        stream = self._service.generate(generation, caller_of(context), streams=request.stream)
        async with contextlib.aclosing(stream):
            async for event in stream:
                for message in answer.add(event):
                    if message.ByteSize() > MAX_MESSAGE_BYTES:
                        raise answer_too_large()
                    await context.write(message)

    async def Abort(  # noqa: N802
        self, request: vllm.AbortRequest, context: Any
    ) -> vllm.AbortResponse:
        """End requests by id."""
        ids = pb.AbortRequest(request_ids=request.request_ids)
        self._service.abort(ids, caller_of(context))
        return vllm.AbortResponse()

    async def HealthCheck(  # noqa: N802
        self, request: vllm.HealthCheckRequest, context: Any
    ) -> vllm.HealthCheckResponse:
        """Whether requests are served; UNAVAILABLE before the model is known."""
        self._service.model_info()  # a router that got an answer would request its name next
        why = self._service.why_not_ready()
        return vllm.HealthCheckResponse(healthy=not why, message=why or "OK")

    async def GetModelInfo(  # noqa: N802
        self, request: vllm.GetModelInfoRequest, context: Any
    ) -> vllm.GetModelInfoResponse:
        """Facts of the model, without its folder on this machine."""
        info = self._service.model_info()
        config = read_object(self._folder / "config.json")
        defaults = json_format.MessageToDict(
            info.default_sampling, preserving_proto_field_name=True
        )
        return vllm.GetModelInfoResponse(
            model_path=info.model,
            is_generation=True,
            max_context_length=info.max_context_tokens,
            vocab_size=info.vocab_size,
            served_model_name=info.model,
            tokenizer_path=info.model,
            model_type=config.get("model_type", ""),
            architectures=[info.architecture],
            eos_token_ids=info.eos_token_ids,
            pad_token_id=_token_id(config.get("pad_token_id"), info.vocab_size),
            bos_token_id=_token_id(config.get("bos_token_id"), info.vocab_size),
            max_req_input_len=info.max_context_tokens - 1,
            default_sampling_params_json=json.dumps(defaults),
        )

    async def GetServerInfo(  # noqa: N802
        self, request: vllm.GetServerInfoRequest, context: Any
    ) -> vllm.GetServerInfoResponse:
        """Facts of the server. A router sees its replicas as one engine."""
        info, load = self._service.server_info(), self._service.load()
        return vllm.GetServerInfoResponse(
            active_requests=load.running_requests + load.queued_requests,
            last_receive_timestamp=self._last_request,
            uptime_seconds=time.monotonic() - self._started,
            server_type=SERVER_TYPE,
            data_parallel_size=1,
            kv_cache_dtype="auto" if info.kv_cache_dtype == info.dtype else info.kv_cache_dtype,
            block_size=info.block_size,
            model_dtype=f"torch.{info.dtype}",
            max_num_seqs=info.max_running_requests,
            constrained_decoding_start="first_token",
        )

    async def GetLoads(  # noqa: N802
        self, request: vllm.GetLoadsRequest, context: Any
    ) -> vllm.GetLoadsResponse:
        """The load of all replicas inside, as that of one engine."""
        load, info = self._service.load(), self._service.server_info()
        queried = load.prefix_query_tokens
        scheduler = vllm.SchedulerLoad(
            num_running_reqs=load.running_requests,
            num_waiting_reqs=load.queued_requests,
            num_total_reqs=load.running_requests + load.queued_requests,
            num_used_tokens=min(INT32_MAX, round(load.kv_cache_usage * info.kv_cache_tokens)),
            max_total_num_tokens=min(INT32_MAX, info.kv_cache_tokens),
            token_usage=load.kv_cache_usage,
            gen_throughput=load.generated_tokens_per_second,
            cache_hit_rate=load.prefix_hit_tokens / queried if queried else 0.0,
            utilization=load.running_requests / info.max_running_requests,
            max_running_requests=info.max_running_requests,
            num_waiting_uncached_tokens=min(INT32_MAX, load.queued_prompt_tokens),
        )
        return vllm.GetLoadsResponse(
            timestamp=datetime.now(UTC).isoformat(),
            version=info.version,
            dp_rank_count=1,
            loads=[scheduler],
        )

    async def GetTokenizer(  # noqa: N802
        self, request: common_pb2.GetTokenizerRequest, context: Any
    ) -> None:
        """Write the tokenizer's zip file; its SHA-256 comes with the last chunk."""
        if not any((self._folder / name).is_file() for name in VOCABULARIES):
            raise RequestError(
                Code.FAILED_PRECONDITION,
                "this model has no tokenizer; give the router a --tokenizer-path",
                reason="NO_TOKENIZER",
            )
        data, digest = await asyncio.to_thread(tokenizer_archive, self._folder, self._chat_template)
        for begin in range(0, len(data), CHUNK_BYTES):
            part = data[begin : begin + CHUNK_BYTES]
            is_last = begin + CHUNK_BYTES >= len(data)
            await context.write(
                common_pb2.GetTokenizerChunk(data=part, sha256=digest if is_last else "")
            )

    async def Embed(self, request: vllm.EmbedRequest, context: Any) -> None:  # noqa: N802
        """Not served."""
        await _unimplemented(context, "Embed")

    async def FlushCache(  # noqa: N802
        self, request: common_pb2.FlushCacheRequest, context: Any
    ) -> None:
        """Not served: the prefix cache evicts by itself."""
        await _unimplemented(context, "FlushCache")

    async def StartProfile(  # noqa: N802
        self, request: common_pb2.StartProfileRequest, context: Any
    ) -> None:
        """Not served."""
        await _unimplemented(context, "StartProfile")

    async def StopProfile(  # noqa: N802
        self, request: common_pb2.StopProfileRequest, context: Any
    ) -> None:
        """Not served."""
        await _unimplemented(context, "StopProfile")

    async def SubscribeKvEvents(  # noqa: N802
        self, request: common_pb2.SubscribeKvEventsRequest, context: Any
    ) -> None:
        """Write the stream of `Service.kv_events` in the router's messages."""
        stream = self._service.kv_events(request.start_sequence_number, caller_of(context))
        async with contextlib.aclosing(stream):
            async for batch in stream:
                await context.write(kv_event_batch(batch))


def _token_id(value: Any, vocab_size: int) -> int:
    """A token as config.json names it, where the protocol has no word for none."""
    return value if type(value) is int and 0 <= value < vocab_size else 0


async def _unimplemented(context: Any, method: str) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here")
