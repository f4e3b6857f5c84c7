"""A simple engine, tokenizer and worker, for tests of the outer frontend.

The engine answers every prompt with the letters after its last one; the tokenizer takes a byte for
a token; the worker draws ever higher tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Collection
from typing import Any

import grpc.aio
import jinja2
import tokenizers

from frontend.api.grpc.server import GrpcServer
from frontend.backend import Backend
from frontend.engine.load import EngineLoad
from frontend.engine.step_stats import StepRates, StepTotals
from frontend.errors import Code, RequestError
from frontend.group_info import GroupInfo
from frontend.link.group_check import group_info
from frontend.model_folder import SamplingDefaults
from frontend.processing.chat.conversation import Conversation
from frontend.processing.thoughts.tags import ThoughtForm
from frontend.processing.tool_calls.format import ToolFormat
from frontend.processing.tool_calls.formats.hermes import HERMES
from frontend.requests.output import FinishReason, TokenLogprobs
from frontend.requests.request import Matcher, Request
from frontend.service.service import Service
from switchyard.worker.link import PROTOCOL
from switchyard.worker.v1 import worker_pb2, worker_pb2_grpc

VOCAB_SIZE = 256
MAX_CONTEXT = 64
EOS = 0
MODEL = "fake"

STEP_RATES = StepRates(
    generated_tokens_per_second=3.0,
    floor_share=0.5,
    decode_floor_share=0.75,
    device_busy=0.25,
    step_seconds=0.125,
    idle_seconds_per_step=0.0625,
    # A fleet's bytes and operations pass 2**64 within days.
    steps=StepTotals(steps=8, device_seconds=2.0, floor_seconds=1.0, bytes_moved=1e30, flops=2e30),
    decode_steps=StepTotals(steps=4, device_seconds=0.5, floor_seconds=0.25, idle_seconds=0.125),
)
LOAD = EngineLoad(
    running_requests=1,
    queued_requests=2,
    kv_cache_usage=0.5,
    queued_prompt_tokens=4,
    preemptions=5,
    prefix_query_tokens=6,
    prefix_hit_tokens=7,
    worker_restarts=8,
    replayed_requests=9,
    kept_states=10,
    kept_state_bytes=11,
    restarting=False,
    rates=STEP_RATES,
)


class FakeEngine:
    """Answers each request in a task of its own, a token a turn of the loop.

    Sample k begins k letters later. A constrained request gets the first token it may have, or an
    end token. Token t has log-probability -t, and the alternatives t + 1, t + 2, …

    Attributes:
        go: cleared, tokens wait from number ``hold_at`` on.
        refuse: raised by the next ``submit``.
        aborted: ids that ``abort`` was called with while they were running.
    """

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.hold_at = 0
        self.first_alone = False
        self.refuse: Exception | None = None
        self.requests: dict[str, Request] = {}
        self.running: dict[str, asyncio.Task[None]] = {}
        self.aborted: list[str] = []

    def submit(self, *requests: Request, first_alone: bool = False) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.first_alone = first_alone
        for request in requests:
            assert request.id not in self.running
            self.requests[request.id] = request
            self.running[request.id] = asyncio.create_task(self._answer(request))

    def abort(self, request_id: str) -> bool:
        task = self.running.pop(request_id, None)
        if task is None:
            return False
        task.cancel()
        self.aborted.append(request_id)
        self.requests[request_id].output.finish(FinishReason.ABORTED)
        return True

    def fail_all(self, error: RequestError) -> None:
        for request_id, task in self.running.items():
            task.cancel()
            self.requests[request_id].output.fail(error)
        self.running.clear()

    def load(self) -> EngineLoad:
        return LOAD

    async def _answer(self, request: Request) -> None:
        request.admitted = time.monotonic()
        request.output.admit()
        sampling = request.sampling
        token = request.prompt_ids[-1]
        for _ in range(sampling.sample_index + len(request.generated)):
            token = next_token(token)
        if sampling.prompt_logprobs:
            request.prompt_logprobs = [
                token_logprobs(each, sampling.num_logprobs) for each in request.prompt_ids[1:]
            ]
        reason = FinishReason.LENGTH
        for _ in range(request.stops.max_new_tokens - request.num_generated):
            if request.num_generated >= self.hold_at:
                await self.go.wait()
            await asyncio.sleep(0)
            token = next_token(token) if request.matcher is None else first_allowed(request.matcher)
            request.first_token = request.first_token or time.monotonic()
            request.num_generated += 1
            text = request.decoder.push(token) if request.decoder else ""
            beside = token_logprobs(token, sampling.num_logprobs) if sampling.num_logprobs else None
            request.output.add(token, text, beside)
            if request.matcher is not None:
                if token in request.stops.eos_token_ids:
                    reason = FinishReason.EOS
                    break
                request.matcher.accept(token)
        request.finished = time.monotonic()
        request.finish_reason = reason
        self.running.pop(request.id)
        request.output.finish(reason)


def token_logprobs(token: int, num_logprobs: int) -> TokenLogprobs:
    """A token's log-probabilities as the fake engine reports them."""
    others = range(token + 1, token + num_logprobs)
    return TokenLogprobs(-float(token), list(others), [-float(other) for other in others])


def first_allowed(matcher: Matcher) -> int:
    """The lowest token of a mask."""
    mask = int.from_bytes(matcher.mask() or b"\1", "little")
    return (mask & -mask).bit_length() - 1


def next_token(token: int) -> int:
    """a → b → … → z → a; anything else begins at a."""
    return token + 1 if ord("a") <= token < ord("z") else ord("a")


def answer_text(prompt: str, num_tokens: int) -> str:
    """The fake engine's text for a prompt."""
    tokens = [ord(prompt[-1]) if prompt[-1].isascii() else 0]
    for _ in range(num_tokens):
        tokens.append(next_token(tokens[-1]))
    return "".join(map(chr, tokens[1:]))


class FakeDecoder:
    """A letter a token; looks for no stop strings."""

    num_thought_tokens = 0
    matched = None

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def flush(self) -> str:
        return ""


class FakeTokenizer:
    """A byte is a token. The template refuses turns that begin with the assistant's."""

    has_chat_template = True
    eos_token_id: int | None = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], keep_special_tokens: bool = False) -> str:
        return bytes(ids).decode(errors="replace")

    @property
    def library_tokenizer(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=_byte_vocabulary(), merges=[]))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        return backend

    def render_chat(self, conversation: Conversation) -> list[int]:
        turns = conversation.turns
        if turns[0]["role"] == "assistant":
            raise jinja2.TemplateError("the first turn must be the user's")
        text = "".join(f"{turn['role'][0]}:{turn['content']}" for turn in turns)
        return self.encode(text + "".join(f"+{tool['name']}" for tool in conversation.tools or ()))

    thought_tags: ThoughtForm | None = None

    tool_format: ToolFormat = HERMES

    def decoder(
        self,
        stops: tuple[str, ...],
        include_stop: bool,
        keep_special: bool,
        min_tokens: int = 0,
        kept: Collection[str] = (),
    ) -> FakeDecoder:
        return FakeDecoder()


def _byte_vocabulary() -> dict[str, int]:
    """A token for each byte, as byte-level tokenizers write it: printable ones as they are."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


def describe(**changes: Any) -> worker_pb2.DescribeResponse:
    """The description of a small model's only rank."""
    facts: dict[str, Any] = {
        "protocol": PROTOCOL, "version": "0", "rank": 0, "world_size": 1, "local_world_size": 1,
        "tensor_parallel_size": 1, "data_parallel_size": 1, "expert_parallel_size": 1,
        "moe_ep_backend": "disabled", "architecture": "FakeForCausalLM", "vocab_size": VOCAB_SIZE,
        "max_model_len": MAX_CONTEXT, "max_batch_size": 4, "max_num_batched_tokens": 64,
        "block_size": 4, "num_blocks": 64, "eos_token_ids": [EOS], "device": "cpu",
        "dtype": "float32", "weights_sha256": "00", "kv_cache_dtype": "float32",
        "group_windows": [0],
    }  # fmt: skip
    return worker_pb2.DescribeResponse(**(facts | changes))


def group(**changes: Any) -> GroupInfo:
    """The same as the service has it."""
    return group_info(describe(**changes))


def backend(engine: Any, **changes: Any) -> Backend:
    """A backend around an engine."""
    parts: dict[str, Any] = {
        "tokenizer": FakeTokenizer(),
        "info": group(),
        "defaults": SamplingDefaults(),
        "max_queued_requests": 8,
    }
    return Backend(engine=engine, **(parts | changes))


@dataclasses.dataclass(frozen=True)
class Running:
    """A server that takes requests, and what is behind it."""

    engine: FakeEngine
    service: Service
    server: GrpcServer
    address: str


@contextlib.asynccontextmanager
async def running_server(ready: bool = True) -> AsyncIterator[Running]:
    """A gRPC server on a free port, with a fake engine behind it when ``ready``."""
    engine, service = FakeEngine(), Service(model=MODEL, version="1.2.3")
    server = GrpcServer(service, "127.0.0.1", 0)
    port = await server.start()
    if ready:
        service.open(backend(engine))
        await server.health.set_ready(True)
    try:
        yield Running(engine, service, server, f"127.0.0.1:{port}")
    finally:
        await server.stop(0.0)


class FakeWorker(worker_pb2_grpc.WorkerServiceServicer):
    """One rank that draws 1, 2, 3, … for any step.

    Attributes:
        seconds: how long each step takes.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    async def Describe(self, request: Any, context: Any) -> worker_pb2.DescribeResponse:  # noqa: N802
        return describe()

    async def Execute(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        token = 0
        async for request in requests:
            if request.HasField("hello"):
                yield worker_pb2.ExecuteResponse(welcome={"epoch": request.hello.epoch})
                continue
            if request.HasField("goodbye"):
                return
            await asyncio.sleep(self.seconds)
            step = request.step
            tokens = []
            for _ in range(step.num_decodes + sum(step.draws)):
                token = token % (VOCAB_SIZE - 1) + 1
                tokens.append(token)
            yield worker_pb2.ExecuteResponse(result={"step_id": step.step_id, "token_ids": tokens})


@contextlib.asynccontextmanager
async def running_worker(worker: FakeWorker) -> AsyncIterator[tuple[grpc.aio.Server, str]]:
    """A rank's server on a free port."""
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.stop(0.0)


def queue_full() -> RequestError:
    """The error of a full queue."""
    return RequestError(
        Code.RESOURCE_EXHAUSTED, "8 requests wait", reason="QUEUE_FULL", retry_after=1.5
    )
