"""Calling the service's faces without sockets: gRPC handlers, and the ASGI application.

Owns the methods that strangers may call, and stand-ins for what grpcio and uvicorn bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import grpc.aio
from smg_grpc_proto.generated import vllm_engine_pb2 as vllm
from starlette.types import ASGIApp

from frontend.api.auth import ApiKeys
from frontend.api.grpc.interceptor import CallInterceptor
from switchyard.v1 import inference_pb2 as pb

OWN_SERVICE = "/switchyard.v1.InferenceService/"
ROUTERS_SERVICE = "/vllm.grpc.engine.VllmEngine/"
METHODS: Mapping[str, type[Any]] = {
    f"{OWN_SERVICE}Generate": pb.GenerateRequest,
    f"{OWN_SERVICE}Chat": pb.ChatRequest,
    f"{OWN_SERVICE}Complete": pb.CompleteRequest,
    f"{OWN_SERVICE}Tokenize": pb.TokenizeRequest,
    f"{OWN_SERVICE}Detokenize": pb.DetokenizeRequest,
    f"{OWN_SERVICE}Abort": pb.AbortRequest,
    f"{ROUTERS_SERVICE}Generate": vllm.GenerateRequest,
    f"{ROUTERS_SERVICE}Abort": vllm.AbortRequest,
}
OWN = tuple(name for name in METHODS if name.startswith(OWN_SERVICE))
ROUTERS = tuple(name for name in METHODS if name.startswith(ROUTERS_SERVICE))


class Registry:
    """Stands for a server: keeps the handlers that servicers register."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers in another form."""

    def add_registered_method_handlers(self, name: str, handlers: Mapping[str, Any]) -> None:
        """Handlers by method."""
        self.handlers |= {f"/{name}/{method}": each for method, each in handlers.items()}


class Context:
    """A call, as handlers see it."""

    def __init__(self, serialize: Callable[[Any], bytes]) -> None:
        self._serialize = serialize
        self.sent: list[Any] = []
        self.status: Any = None

    async def write(self, message: Any) -> None:
        self._serialize(message)
        self.sent.append(message)

    async def abort_with_status(self, status: Any) -> None:
        self.status = status
        raise grpc.aio.AbortError

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def done(self) -> bool:
        return False


async def guarded(handler: Any, method: str) -> Any:
    """A method's handler as the interceptor leaves it."""

    async def continuation(details: Any) -> Any:
        return handler

    class Details:
        invocation_metadata: tuple[()] = ()

    details: Any = Details()
    details.method = method
    return await CallInterceptor(ApiKeys()).intercept_service(continuation, details)


async def asgi(app: ASGIApp, scope: dict[str, Any], body: bytes) -> list[dict[str, Any]]:
    """Everything the application sends."""
    sent: list[dict[str, Any]] = []
    parts: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": body, "more_body": False}]
    )

    async def receive() -> dict[str, Any]:
        part = next(parts, None)
        if part is None:
            await asyncio.Event().wait()
        assert part is not None, "nobody leaves"
        return part

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def valid_messages() -> list[tuple[str, bytes]]:
    """Some messages that are answered, by method: what mutation of raw bytes begins with."""
    generate = pb.GenerateRequest(
        request_id="r",
        prompt={"text": "abc"},
        sampling={"temperature": 0.5, "top_p": 0.9, "seed": 1, "logit_bias": {5: 1.0}},
        stop_conditions={"max_new_tokens": 4, "stop": ["z"], "stop_token_ids": [7]},
        output={"logprobs": True, "top_logprobs": 2, "prompt_logprobs": True, "echo": True},
        n=2,
    )
    constrained = pb.GenerateRequest(prompt={"tokens": {"ids": [1, 2]}})
    constrained.constraint.regex = "[a-z]{3}"
    chat = pb.ChatRequest(
        messages=[{"role": pb.ROLE_USER, "content": "a"}],
        template_kwargs_json='{"shout": ["a"]}',
        tools_json='[{"type": "function", "function": {"name": "f"}}]',
        request={"stop_conditions": {"max_new_tokens": 4}},
    )
    router = vllm.GenerateRequest(
        request_id="r", tokenized={"input_ids": [1, 2]}, stream=True,
        sampling_params={"max_tokens": 4, "logprobs": 1, "temperature": 0.5, "stop": ["z"]},
    )  # fmt: skip
    messages: list[tuple[str, Any]] = [
        (f"{OWN_SERVICE}Generate", generate),
        (f"{OWN_SERVICE}Generate", constrained),
        (f"{OWN_SERVICE}Chat", chat),
        (f"{OWN_SERVICE}Complete", pb.CompleteRequest(request=generate)),
        (f"{OWN_SERVICE}Tokenize", pb.TokenizeRequest(text="abc")),
        (f"{OWN_SERVICE}Detokenize", pb.DetokenizeRequest(token_ids=[5, 6, 7])),
        (f"{OWN_SERVICE}Abort", pb.AbortRequest(request_ids=["r"])),
        (f"{ROUTERS_SERVICE}Generate", router),
        (f"{ROUTERS_SERVICE}Abort", vllm.AbortRequest(request_ids=["r"])),
    ]
    return [(method, message.SerializeToString()) for method, message in messages]
