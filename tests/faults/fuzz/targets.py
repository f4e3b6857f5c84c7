"""What takes bytes from strangers, each as a function of bytes that complains when it must not.

Owns which part of an input goes where. What an answer must be is `oracle`'s; where the bytes
come from is the caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc.aio
from smg_grpc_proto.generated import vllm_engine_pb2 as vllm
from smg_grpc_proto.generated import vllm_engine_pb2_grpc

from frontend.api.application import application
from frontend.api.grpc.interceptor import authenticated_key
from frontend.api.grpc.server import InferenceServicer
from frontend.api.vllm.servicer import VllmEngineServicer
from frontend.link.rank_channel import GroupLost
from frontend.processing.tokenizer import Tokenizer
from frontend.processing.tool_calls.events import Event, Text
from frontend.processing.tool_calls.held_output import ListOfCalls, NamedCall
from frontend.processing.tool_calls.table import FORMATS
from frontend.processing.tool_calls.tools import Tool
from switchyard.v1 import inference_pb2 as pb
from switchyard.v1 import inference_pb2_grpc
from switchyard.worker.v1 import worker_pb2
from tests.faults.fuzz import messages
from tests.faults.fuzz.calls import (
    METHODS,
    OWN,
    OWN_SERVICE,
    ROUTERS,
    Context,
    Registry,
    asgi,
    guarded,
)
from tests.faults.fuzz.oracle import (
    FindingError,
    check_http,
    check_status,
    check_stream,
    tokens_of,
)
from tests.faults.fuzz.stack import Overheard, Stack, altered
from tests.faults.fuzz.values import Bytes
from tests.frontend.fakes import MODEL

ANSWER_SECONDS = 20.0
"""An input that takes longer is a finding."""

FUZZED = {"f": Tool(name="f", parameters={}, sent={}, field="")}


class Targets:
    """All targets over one stack.

    Args:
        folder: a model's, with a tokenizer.

    Attributes:
        names: of the targets, which `run` takes.
    """

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._folder, self._loop = folder, loop
        self._tokenizer = Tokenizer.load(folder)
        self._overheard = Overheard()
        logging.getLogger("frontend").addHandler(self._overheard)
        logging.getLogger("frontend").propagate = False
        loop.set_exception_handler(self._overheard.from_loop)
        self._functions: Mapping[str, Callable[[Bytes], Awaitable[None]]] = {
            "wire": self._wire,
            "messages": self._messages,
            "languages": self._languages,
            "chat": self._chat,
            "routers": self._routers,
            "http": self._http,
            "results": self._results,
            "calls": self._calls,
        }
        self.names = tuple(self._functions)
        self._renew()

    def _renew(self) -> None:
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self._stack = stack = Stack(self._tokenizer)
        self._app = application(stack.service, model=MODEL)
        registry = Registry()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceServicer(stack.service), registry
        )
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(
            VllmEngineServicer(stack.service, self._folder), registry
        )
        self._handlers = {}
        for method in METHODS:
            self._handlers[method] = await guarded(registry.handlers[method], method)

    def close(self) -> None:
        """End what was started."""
        logging.getLogger("frontend").removeHandler(self._overheard)
        logging.getLogger("frontend").propagate = True
        self._loop.run_until_complete(self._stack.close())

    def run(self, name: str, data: bytes) -> None:
        """Try one input.

        Raises:
            Exception: it was not answered as it must be; the next input finds a new stack.
        """
        try:
            self._loop.run_until_complete(self._try(self._functions[name], Bytes(data)))
        except BaseException:
            with contextlib.suppress(Exception):
                self._loop.run_until_complete(asyncio.wait_for(self._stack.close(), 1.0))
            self._renew()
            raise

    def post(self, path: str, body: str) -> None:
        """Try one body of the HTTP API."""
        headers: list[tuple[bytes, bytes]] = []
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "client": None}
        self._loop.run_until_complete(self._post(scope, body.encode()))

    async def _post(self, scope: dict[str, Any], body: bytes) -> None:
        self._overheard.errors.clear()
        try:
            check_http(await asgi(self._app, scope, body))
        except FindingError as error:
            raise error from self._cause()

    async def _try(self, function: Callable[[Bytes], Awaitable[None]], data: Bytes) -> None:
        self._overheard.errors.clear()
        authenticated_key.set("")  # as the interceptor does in a call's own task
        async with asyncio.timeout(ANSWER_SECONDS):
            try:
                await function(data)
                left = await self._stack.quiet()
            except FindingError as error:
                raise error from self._cause()
        if self._overheard.errors:
            raise FindingError("a failure was logged") from self._cause()
        if left:
            raise FindingError(f"left behind: {left}")

    def _cause(self) -> BaseException | None:
        """What was logged first, which says more than a status does."""
        if not self._overheard.errors:
            return None
        first = self._overheard.errors[0]
        return first if isinstance(first, BaseException) else FindingError(first)

    # ---- targets ----

    async def _wire(self, data: Bytes) -> None:
        """Any bytes as any method's message."""
        await self._call(data.pick(tuple(METHODS)), data.rest())

    async def _messages(self, data: Bytes) -> None:
        """Messages with any fields."""
        method = data.pick(OWN)
        message = METHODS[method]()
        messages.fill(message, data)
        if isinstance(message, pb.ChatRequest) and data.below(8):
            message.request.ClearField("prompt")
        await self._call(method, message.SerializeToString())

    async def _languages(self, data: Bytes) -> None:
        """Requests that only a constraint can make wrong."""
        asked = pb.GenerateRequest(prompt={"text": "abc"}, stop_conditions={"max_new_tokens": 12})
        asked.sampling.seed = data.below(256)
        language = data.pick(("json_schema", "regex", "grammar", "json_schema", "json_object"))
        if language == "json_object":
            asked.constraint.json_object = bool(data.below(2))
        else:
            make = messages.TEXTS[language]
            setattr(asked.constraint, language, make(data))
        await self._call(f"{OWN_SERVICE}Generate", asked.SerializeToString())

    async def _chat(self, data: Bytes) -> None:
        """Conversations that reach the template."""
        asked = pb.ChatRequest(request={"stop_conditions": {"max_new_tokens": 2}})
        asked.messages.add(role=pb.ROLE_USER, content="a")
        for _ in range(data.below(3)):
            messages.fill(asked.messages.add(), data)
        asked.continue_final_message = not data.below(4)
        asked.parse_special_tokens = not data.below(8)
        if data.below(2):
            asked.tools_json = messages.TEXTS["tools_json"](data)
        if data.below(2):
            asked.template_kwargs_json = messages.TEXTS["template_kwargs_json"](data)
        await self._call(f"{OWN_SERVICE}Chat", asked.SerializeToString())

    async def _routers(self, data: Bytes) -> None:
        """Messages of vllm.grpc.engine with any fields."""
        method = data.pick(ROUTERS[:1] * 7 + ROUTERS[1:])
        message = METHODS[method]()
        messages.fill(message, data)
        if isinstance(message, vllm.GenerateRequest) and data.below(8):
            for field in ("kv_transfer_params", "mm_inputs", "media_refs"):
                message.ClearField(field)
            message.ClearField("kv_transfer_params_json")
        await self._call(method, message.SerializeToString())

    async def _call(self, method: str, data: bytes) -> list[Any]:
        """One call over the guarded handler, and the oracle over its answer.

        Returns:
            What was sent, unless it was refused.
        """
        handler = self._handlers[method]
        context = Context(handler.response_serializer)
        request = handler.request_deserializer(data)
        function = handler.unary_stream or handler.unary_unary
        try:
            answer = await function(request, context)
            if handler.unary_unary:
                await context.write(answer)
        except grpc.aio.AbortError:
            check_status(context.status)
            return []
        if handler.response_streaming:
            check_stream(method, context.sent)
        return context.sent

    async def _http(self, data: Bytes) -> None:
        """HTTP bodies, good and bad, and some headers."""
        path = data.pick(messages.HTTP_PATHS)
        headers: list[tuple[bytes, bytes]] = []
        if data.chance(20):
            path = data.pick(
                ("/", "/v1/models", "/v1/models/x", "/health", "/metrics", data.text())
            )
        for name in (b"authorization", b"x-request-id", b"traceparent", b"content-length"):
            if data.chance(20):
                headers.append((name, data.take(data.below(40))))
        method = data.pick(("GET", "PUT", "HEAD", "\0")) if data.chance(10) else "POST"
        body = data.rest() if data.chance(60) else messages.http_body(data, path)
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": None}
        check_http(await asgi(self._app, scope, body))

    async def _calls(self, data: Bytes) -> None:
        """What a model says, read for calls of tools; every reader's words can be sent on."""
        tool_format = data.pick([*FORMATS.values()])
        reader = data.pick((tool_format.reader(FUZZED), ListOfCalls({"f"}), NamedCall("f")))
        said: list[Event] = []
        while not data.is_over:
            said += reader.push(messages.model_text(data))
        said += reader.flush()
        json.dumps([dataclasses.asdict(each) for each in said], ensure_ascii=False).encode()
        if any(event == Text("") for event in said):
            raise FindingError(f"an empty part: {said}")

    async def _results(self, data: Bytes) -> None:
        """A rank whose answer is not what it should be, and another that goes on."""
        stack, number = self._stack, data.below(6)
        answers = iter(range(1 << 30))

        def alter(result: worker_pb2.StepResult) -> bytes:
            right = worker_pb2.ExecuteResponse(result=result)
            return altered(right, data) if next(answers) == number else right.SerializeToString()

        await stack.go_on(alter)
        asked = pb.GenerateRequest(prompt={"tokens": {"ids": range(1, 11)}}, n=1 + data.below(3))
        asked.stop_conditions.max_new_tokens = 8
        asked.output.logprobs = bool(data.below(2))
        asked.output.prompt_logprobs = bool(data.below(2))
        if asked.output.logprobs or asked.output.prompt_logprobs:
            asked.output.top_logprobs = data.below(3)
        asked.sampling.seed = 1 + data.below(3)
        message = asked.SerializeToString()
        call = asyncio.create_task(self._call(f"{OWN_SERVICE}Generate", message))
        await asyncio.wait({call, stack.running}, return_when=asyncio.FIRST_COMPLETED)
        is_lost = stack.running.done()
        if is_lost:
            error = stack.running.exception()
            if not isinstance(error, GroupLost):
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                raise FindingError("the engine ended, the group is not lost") from error
            await stack.go_on()
        tokens = tokens_of(await call)
        if not is_lost:
            return
        alone = tokens_of(await self._call(f"{OWN_SERVICE}Generate", message))
        if tokens != alone:
            raise FindingError(f"{tokens} after a loss, {alone} without")
