"""`vllm.Inference` and `vllm.Control`: the protocol of vLLM's own server.

Owns the methods of that protocol. `frontend.service` answers every one; `request.py` and
`response.py` translate. What the protocol has besides is UNIMPLEMENTED.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio

from frontend.api.grpc.interceptor import caller_of
from frontend.api.vllm_native.request import TARGET_RANK, generate_request
from frontend.api.vllm_native.response import Answer
from frontend.errors import invalid_field
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from switchyard.vllm import native_pb2 as vllm
from switchyard.vllm import native_pb2_grpc


def vllm_native(service: Service) -> Callable[[grpc.aio.Server], None]:
    """Adds both services of the protocol to a server."""

    def add(server: grpc.aio.Server) -> None:
        native_pb2_grpc.add_InferenceServicer_to_server(  # type: ignore[no-untyped-call]
            InferenceServicer(service), server
        )
        native_pb2_grpc.add_ControlServicer_to_server(  # type: ignore[no-untyped-call]
            ControlServicer(service), server
        )

    return add


class InferenceServicer(native_pb2_grpc.InferenceServicer):
    """A whole answer, and a stream."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def Generate(  # noqa: N802
        self, request: vllm.GenerateRequest, context: Any
    ) -> vllm.GenerateResponse:
        """Answer with `Service.complete`, whose one output it is."""
        generation = self._generation(request, context, streams=False)
        answer = Answer(request.response, await self._prompt_ids(request, generation))
        wanted = pb.CompleteRequest(request=generation)
        return answer.whole(await self._service.complete(wanted, caller_of(context)))

    async def GenerateStream(  # noqa: N802
        self, request: vllm.GenerateRequest, context: Any
    ) -> None:
        """Write the stream of `Service.generate`, which ends with the call."""
        generation = self._generation(request, context, streams=True)
        answer = Answer(request.response, await self._prompt_ids(request, generation))
        stream = self._service.generate(generation, caller_of(context))
        async with contextlib.aclosing(stream):
            async for event in stream:
                for message in answer.add(event):
                    await context.write(message)

    def _generation(
        self, request: vllm.GenerateRequest, context: Any, *, streams: bool
    ) -> pb.GenerateRequest:
        for name, value in context.invocation_metadata() or ():
            if name == TARGET_RANK and value != "0":
                raise invalid_field(TARGET_RANK, "must be 0: ranks are balanced inside")
        return generate_request(request, streams=streams, has_tokenizer=self._service.has_tokenizer)

    async def _prompt_ids(
        self, request: vllm.GenerateRequest, generation: pb.GenerateRequest
    ) -> Sequence[int]:
        """The prompt's tokens, where they are wanted."""
        if not request.response.prompt_token_ids:
            return ()
        if generation.prompt.WhichOneof("input") == "text":
            return await self._service.tokenize_text(generation.prompt.text)
        return generation.prompt.tokens.ids


class ControlServicer(native_pb2_grpc.ControlServicer):
    """Facts, and the end of requests."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._instance_id = uuid.uuid4().hex

    async def GetServerInfo(  # noqa: N802
        self, request: vllm.GetServerInfoRequest, context: Any
    ) -> vllm.ServerInfo:
        """Facts of the server, whose replicas of attention are one rank."""
        server, model = self._service.server_info(), self._service.model_info()
        return vllm.ServerInfo(
            engine_version=server.version,
            instance_id=self._instance_id,
            parallelism=vllm.ParallelismInfo(
                tensor_parallel_size=server.tensor_parallel_size,
                pipeline_parallel_size=1,
                data_parallel_size=1,
                world_size=server.world_size,
            ),
            max_model_len=model.max_context_tokens,
            kv_block_size=server.block_size,
            total_kv_blocks=server.kv_cache_tokens // server.block_size,
            max_running_requests=server.max_running_requests,
        )

    async def GetModelInfo(  # noqa: N802
        self, request: vllm.GetModelInfoRequest, context: Any
    ) -> vllm.ModelInfo:
        """Facts of the model, without its folder on this machine."""
        model = self._service.model_info()
        return vllm.ModelInfo(
            model_id=model.model,
            served_model_name=model.model,
            supports_text_input=self._service.has_tokenizer,
            supports_token_ids_input=True,
        )

    async def Abort(  # noqa: N802
        self, request: vllm.AbortRequest, context: Any
    ) -> vllm.AbortResponse:
        """End requests of the caller's key by id."""
        ids = pb.AbortRequest(request_ids=request.request_ids)
        self._service.abort(ids, caller_of(context))
        return vllm.AbortResponse()

    async def GetKvEventSources(  # noqa: N802
        self, request: vllm.GetKvEventSourcesRequest, context: Any
    ) -> vllm.GetKvEventSourcesResponse:
        """None: other protocols on this port have the events."""
        return vllm.GetKvEventSourcesResponse()
