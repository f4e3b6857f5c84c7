"""What takes bytes from strangers, each as a function of bytes that complains when it must not.

Owns the oracle: an answer or a refusal that the contract allows, and nothing left behind. Knows
nothing of where the bytes come from.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from smg_grpc_proto.generated import vllm_engine_pb2 as vllm
from smg_grpc_proto.generated import vllm_engine_pb2_grpc

from frontend.access import Access
from frontend.grpc_server import InferenceServicer
from frontend.guard import Guard
from frontend.openai.app import App
from frontend.rank import GroupLost
from frontend.tokenizer import Tokenizer
from frontend.vllm_engine import VllmEngineServicer
from switchyard.v1 import inference_pb2 as pb
from switchyard.v1 import inference_pb2_grpc
from switchyard.worker.v1 import worker_pb2
from tests.faults import fuzz_messages
from tests.faults.fuzz_stack import VOCAB_SIZE, Overheard, Stack
from tests.faults.fuzz_values import Bytes
from tests.frontend.fakes import MODEL

ANSWER_SECONDS = 20.0
"""An input that takes longer is a finding."""

# INTERNAL and UNKNOWN are bugs; UNAVAILABLE would be a lost group, and there is none.
ALLOWED = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
# gRPC takes no more metadata; past it the client sees another status.
MAX_TRAILER_BYTES = 16 << 10

_OWN = "/switchyard.v1.InferenceService/"
_ROUTERS = "/vllm.grpc.engine.VllmEngine/"
METHODS: Mapping[str, type[Any]] = {
    f"{_OWN}Generate": pb.GenerateRequest,
    f"{_OWN}Chat": pb.ChatRequest,
    f"{_OWN}Complete": pb.CompleteRequest,
    f"{_OWN}Tokenize": pb.TokenizeRequest,
    f"{_OWN}Detokenize": pb.DetokenizeRequest,
    f"{_OWN}Abort": pb.AbortRequest,
    f"{_ROUTERS}Generate": vllm.GenerateRequest,
    f"{_ROUTERS}Abort": vllm.AbortRequest,
}
OWN = tuple(name for name in METHODS if name.startswith(_OWN))
ROUTERS = tuple(name for name in METHODS if name.startswith(_ROUTERS))


class FindingError(AssertionError):
    """The oracle was not kept to."""


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
        }
        self.names = tuple(self._functions)
        self._renew()

    def _renew(self) -> None:
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self._stack = stack = Stack(self._tokenizer)
        self._app = App(stack.service, model=MODEL)
        registry = Registry()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceServicer(stack.service, Access()), registry
        )
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(
            VllmEngineServicer(stack.service, Access(), self._folder), registry
        )
        self._handlers = {}
        for method in METHODS:
            self._handlers[method] = await _guarded(registry.handlers[method], method)

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

    async def _try(self, function: Callable[[Bytes], Awaitable[None]], data: Bytes) -> None:
        self._overheard.errors.clear()
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
        fuzz_messages.fill(message, data)
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
            make = fuzz_messages.TEXTS[language]
            setattr(asked.constraint, language, make(data))
        await self._call(f"{_OWN}Generate", asked.SerializeToString())

    async def _chat(self, data: Bytes) -> None:
        """Conversations that reach the template."""
        asked = pb.ChatRequest(request={"stop_conditions": {"max_new_tokens": 2}})
        asked.messages.add(role=pb.ROLE_USER, content="a")
        for _ in range(data.below(3)):
            fuzz_messages.fill(asked.messages.add(), data)
        if data.below(2):
            asked.tools_json = fuzz_messages.TEXTS["tools_json"](data)
        if data.below(2):
            asked.template_kwargs_json = fuzz_messages.TEXTS["template_kwargs_json"](data)
        await self._call(f"{_OWN}Chat", asked.SerializeToString())

    async def _routers(self, data: Bytes) -> None:
        """Messages of vllm.grpc.engine with any fields."""
        method = data.pick(ROUTERS[:1] * 7 + ROUTERS[1:])
        message = METHODS[method]()
        fuzz_messages.fill(message, data)
        if isinstance(message, vllm.GenerateRequest) and data.below(8):
            for field in ("kv_transfer_params", "mm_inputs", "media_refs"):
                message.ClearField(field)
            message.ClearField("kv_transfer_params_json")
        await self._call(method, message.SerializeToString())

    async def _call(self, method: str, data: bytes) -> None:
        """One call over the guarded handler, and the oracle over its answer."""
        handler = self._handlers[method]
        context = Context(handler.response_serializer)
        request = handler.request_deserializer(data)
        function = handler.unary_stream or handler.unary_unary
        try:
            answer = await function(request, context)
            if handler.unary_unary:
                await context.write(answer)
        except grpc.aio.AbortError:
            _check_status(context.status)
            return
        if handler.response_streaming:
            _check_stream(method, context.sent)

    async def _http(self, data: Bytes) -> None:
        """HTTP bodies, good and bad, and some headers."""
        chat = bool(data.below(2))
        path = "/v1/chat/completions" if chat else "/v1/completions"
        headers: list[tuple[bytes, bytes]] = []
        if data.chance(20):
            path = data.pick(("/", "/v1/models", "/v1/models/x", "/health", "/metrics", data.text()))
        for name in (b"authorization", b"x-request-id", b"traceparent", b"content-length"):
            if data.chance(20):
                headers.append((name, data.take(data.below(40))))
        method = data.pick(("GET", "PUT", "HEAD", "\0")) if data.chance(10) else "POST"
        body = data.rest() if data.chance(60) else fuzz_messages.http_body(data, chat)
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": None}
        _check_http(await _asgi(self._app, scope, body))

    async def _results(self, data: Bytes) -> None:
        """A rank whose answer is not what it should be, and another that goes on."""
        stack, number = self._stack, data.below(6)
        answers = iter(range(1 << 30))

        def alter(result: worker_pb2.StepResult) -> bytes:
            right = worker_pb2.ExecuteResponse(result=result)
            return altered(right, data) if next(answers) == number else right.SerializeToString()

        await stack.go_on(alter)
        asked = pb.GenerateRequest(prompt={"tokens": {"ids": range(1, 30)}}, n=1 + data.below(3))
        asked.stop_conditions.max_new_tokens = 8
        asked.output.logprobs = bool(data.below(2))
        asked.output.prompt_logprobs = bool(data.below(2))
        if asked.output.logprobs or asked.output.prompt_logprobs:
            asked.output.top_logprobs = data.below(3)
        call = asyncio.create_task(self._call(f"{_OWN}Generate", asked.SerializeToString()))
        await asyncio.wait({call, stack.running}, return_when=asyncio.FIRST_COMPLETED)
        if stack.running.done():
            error = stack.running.exception()
            if not isinstance(error, GroupLost):
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                raise FindingError("the engine ended, the group is not lost") from error
            await stack.go_on()
        await call


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
        (f"{_OWN}Generate", generate),
        (f"{_OWN}Generate", constrained),
        (f"{_OWN}Chat", chat),
        (f"{_OWN}Complete", pb.CompleteRequest(request=generate)),
        (f"{_OWN}Tokenize", pb.TokenizeRequest(text="abc")),
        (f"{_OWN}Detokenize", pb.DetokenizeRequest(token_ids=[5, 6, 7])),
        (f"{_OWN}Abort", pb.AbortRequest(request_ids=["r"])),
        (f"{_ROUTERS}Generate", router),
        (f"{_ROUTERS}Abort", vllm.AbortRequest(request_ids=["r"])),
    ]
    return [(method, message.SerializeToString()) for method, message in messages]


def altered(right: worker_pb2.ExecuteResponse, data: Bytes) -> bytes:
    """An answer with something wrong, or nothing."""
    result = right.result
    match data.below(6):
        case 0:
            return data.rest()
        case 1:
            text = bytearray(right.SerializeToString())
            for _ in range(1 + data.below(3)):
                text[data.below(65536) % len(text)] = data.byte()
            return bytes(text)
        case 2:
            fuzz_messages.fill(result, data)
        case 3:
            result.token_ids.extend([data.integer(-(2**31), 2**31 - 1)] * data.below(3))
        case 4:
            if result.token_ids:
                place = data.below(len(result.token_ids))
                wrong = data.pick((VOCAB_SIZE, 2**31 - 1, -2, -(2**31)))
                result.token_ids[place] = wrong
        case _:
            name = data.pick([field.name for field in result.DESCRIPTOR.fields])
            column = getattr(result, name)
            if isinstance(column, int | float):
                result.ClearField(name)
            else:
                del column[data.below(4) :]
    # It says that logits were not finite, which ends a request as INTERNAL, and rightly.
    del result.token_ids[len(result.token_ids) if -1 not in result.token_ids else 0 :]
    return right.SerializeToString()


async def _guarded(handler: Any, method: str) -> Any:
    async def continuation(details: Any) -> Any:
        return handler

    class Details:
        invocation_metadata: tuple[()] = ()

    details: Any = Details()
    details.method = method
    return await Guard(Access()).intercept_service(continuation, details)


def _check_status(status: Any) -> None:
    if status.code not in ALLOWED:
        raise FindingError(f"{status.code.name}: {status.details}")
    if not status.details or "\n" in status.details:
        raise FindingError(f"{status.code.name} is told in no line, or in several")
    size = len(urllib.parse.quote(status.details))
    for key, value in status.trailing_metadata:
        size += len(key) + len(base64.b64encode(value) if isinstance(value, bytes) else value)
    if size > MAX_TRAILER_BYTES:
        raise FindingError(f"{status.code.name} takes {size} bytes of trailers")


def _check_stream(method: str, sent: list[Any]) -> None:
    """A stream begins and ends, and its tokens are those of its usage."""
    if method.startswith(_ROUTERS):
        whole = [each.complete for each in sent if each.HasField("complete")]
        if not whole or any(len(each.output_ids) != each.completion_tokens for each in whole):
            raise FindingError(f"a router's stream of {len(sent)} messages is not whole")
        return
    events = [each.response if isinstance(each, pb.ChatResponse) else each for each in sent]
    kinds = [event.WhichOneof("event") for event in events]
    if kinds[:1] != ["started"] or kinds[-1] != "finished" or len(kinds) < 3:
        raise FindingError(f"a stream is {kinds[:2]} … {kinds[-2:]}")
    tokens = [token for event in events for token in event.delta.token_ids]
    if len(tokens) != events[-1].finished.usage.completion_tokens:
        raise FindingError(f"{len(tokens)} tokens, usage is {events[-1].finished.usage}")
    if any(token >= VOCAB_SIZE for token in tokens):
        raise FindingError("a token is none of the vocabulary")


async def _asgi(app: App, scope: dict[str, Any], body: bytes) -> list[dict[str, Any]]:
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


def _check_http(sent: list[dict[str, Any]]) -> None:
    kinds = [message["type"] for message in sent]
    if kinds[:1] != ["http.response.start"] or len(kinds) < 2 or sent[-1].get("more_body"):
        raise FindingError(f"a response is {kinds}")
    status = sent[0]["status"]
    body = b"".join(message["body"] for message in sent[1:])
    if not (200 <= status < 300 or 400 <= status < 500 or status == 503):
        raise FindingError(f"HTTP {status}: {body[:200]!r}")
    if b"internal error" in body:
        raise FindingError(f"HTTP {status} and then: {body[-200:]!r}")
