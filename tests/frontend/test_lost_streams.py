"""Streams that are lost at any place and go on: they give what they would have given."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from frontend.api.grpc import server as server_module
from frontend.api.grpc.server import GrpcServer, InferenceServicer
from frontend.engine.engine import Engine
from frontend.processing.tokenizer import Tokenizer
from frontend.service.service import Service
from switchyard import resumption
from switchyard.client import AsyncClient, AsyncStream, Client, Stream
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.played_service import Say, played_service
from tests.frontend.processing.thoughts.test_outputs import TOKENIZER, Model

PROMPT = "The quick brown fox 東京"
KINDS: dict[str, dict[str, Any]] = {
    "a seed that the server picks": {"max_new_tokens": 12},
    "samples that end apart": {
        "n": 3, "seed": 3, "max_new_tokens": 16, "stop_token_ids": list(range(0, 372, 9)),
    },
    "stop strings": {
        "seed": 5, "n": 2, "max_new_tokens": 40, "stop": ["zzz", "e", "qu"], "include_stop": True,
    },
    "least and most": {
        "seed": 8, "n": 2, "max_new_tokens": 9, "min_new_tokens": 7, "stop": ["e", "a", "t"],
    },
    "log-probabilities": {
        "seed": 9, "n": 2, "max_new_tokens": 8, "logprobs": True, "top_logprobs": 2,
        "prompt_logprobs": True, "echo": True,
    },
    "a prompt's log-probabilities alone": {"seed": 1, "max_new_tokens": 3, "prompt_logprobs": True},
    "a grammar": {"seed": 4, "n": 2, "max_new_tokens": 30, "regex": "([a-c]{3}[0-9]){2,4}é"},
    "bad words": {"seed": 6, "max_new_tokens": 20, "bad_words": ["qu", "東京", "é!"]},
    "JSON": {
        "seed": 7, "max_new_tokens": 30,
        "json_schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
    "ids alone": {"seed": 2, "max_new_tokens": 6, "skip_detokenize": True},
}  # fmt: skip


class Cutting(InferenceServicer):
    """Breaks streams off after so many messages each, as long as there are numbers left."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.cuts: list[int] = []
        self.asked: list[pb.GenerateRequest | pb.ChatRequest] = []

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        await super().Generate(request, self._cut(request, context))

    async def Chat(self, request: pb.ChatRequest, context: Any) -> None:  # noqa: N802
        await super().Chat(request, self._cut(request, context))

    def _cut(self, request: pb.GenerateRequest | pb.ChatRequest, context: Any) -> Any:
        self.asked.append(request)
        return _CutContext(context, self.cuts.pop(0)) if self.cuts else context


class _CutContext:
    def __init__(self, context: Any, num_messages: int) -> None:
        self._context = context
        self._left = num_messages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        if not self._left:
            await self._context.abort(grpc.StatusCode.UNAVAILABLE, "the connection is gone")
        self._left -= 1
        await self._context.write(message)


@dataclasses.dataclass
class Serving:
    address: str
    servicer: Cutting
    engine: Engine


@pytest.fixture
async def serving(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serving]:
    async with played_server(tokenizer, None, monkeypatch) as server:
        yield server


@contextlib.asynccontextmanager
async def played_server(
    tokenizer: Tokenizer, say: Say | None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Serving]:
    servicers = []

    def cutting(service: Service) -> Cutting:
        servicers.append(Cutting(service))
        return servicers[0]

    monkeypatch.setattr(server_module, "InferenceServicer", cutting)
    monkeypatch.setattr(resumption, "_FIRST_PAUSE", 0.001)
    async with played_service(tokenizer, say) as (service, engine):
        server = GrpcServer(service, "127.0.0.1", 0)
        address = f"127.0.0.1:{await server.start()}"
        yield Serving(address, servicers[0], engine)
        await server.stop(0.0)


@dataclasses.dataclass
class Told:
    """What a stream gave, sample by sample, and how often it was begun again."""

    outputs: dict[int, pb.Delta] = dataclasses.field(default_factory=lambda: defaultdict(pb.Delta))
    prompt_logprobs: list[float] = dataclasses.field(default_factory=list)
    usage: tuple[int, int] = (0, 0)
    resumes: int = dataclasses.field(default=0, compare=False)

    def add(self, delta: pb.Delta) -> None:
        output = self.outputs[delta.index]
        assert not output.finish_reason, "a delta after a sample's end"
        texts = output.reasoning + delta.reasoning, output.text + delta.text
        output.MergeFrom(delta)
        output.reasoning, output.text = texts

    def end(self, stream: Stream | AsyncStream) -> Told:
        usage = stream.finished.usage
        self.usage = usage.prompt_tokens, usage.completion_tokens
        self.prompt_logprobs = list(stream.started.prompt_logprobs)
        self.resumes = stream.resumes
        assert usage.cached_prompt_tokens <= usage.prompt_tokens
        return self


async def told(stream: AsyncStream) -> Told:
    answer = Told()
    async with stream:
        async for delta in stream:
            answer.add(delta)
    return answer.end(stream)


def sync_told(stream: Stream) -> Told:
    answer = Told()
    with stream:
        for delta in stream:
            answer.add(delta)
    return answer.end(stream)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_a_loss_after_any_message_changes_nothing(kind: str, serving: Serving) -> None:
    """Before the first one, within samples, between the ends of two, and before the last one."""
    options = KINDS[kind]
    async with AsyncClient(serving.address) as client:
        first = client.generate(PROMPT, **options)
        whole = await told(first)
        options = {"seed": first.started.seed, **options}
        for num_messages in itertools.count():
            serving.servicer.cuts, num_asked = [num_messages], len(serving.servicer.asked)
            given = client.generate(PROMPT, **options)
            assert await told(given) == whole, f"lost after {num_messages} messages"
            if len(serving.servicer.asked) == num_asked + 1:
                break  # it has no more messages than that
            assert given.resumes == (num_messages > 0)
    assert num_messages >= 3
    assert serving.engine.load().running_requests == 0


async def test_a_seed_that_the_server_picked_stays(serving: Serving) -> None:
    async with AsyncClient(serving.address) as client:
        serving.servicer.cuts = [2, 2, 2]
        given = client.generate(PROMPT, max_new_tokens=30)
        shaken = await told(given)
        assert given.resumes == 3
        seeded = client.generate(PROMPT, max_new_tokens=30, seed=given.started.seed)
        assert await told(seeded) == shaken


@pytest.mark.parametrize("seed", range(12))
async def test_many_losses_change_nothing(seed: int, serving: Serving) -> None:
    rng = random.Random(seed)
    options = {"seed": seed, **KINDS[rng.choice(list(KINDS))]}
    async with AsyncClient(serving.address) as client:
        whole = await told(client.generate(PROMPT, **options))
        serving.servicer.cuts = [2, *(rng.randrange(4, 7) for _ in range(8))]  # each with progress
        shaken = await told(client.generate(PROMPT, **options))
    assert shaken == whole
    assert shaken.resumes > 0


async def test_thoughts_come_once(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [{"role": "user", "content": "hi"}]
    async with (
        played_server(TOKENIZER, Model(begun=False), monkeypatch) as serving,
        AsyncClient(serving.address) as client,
    ):
        whole = await told(client.chat(turns, seed=1))
        assert whole.outputs[0].reasoning
        assert whole.outputs[0].text
        for num_messages in itertools.count(1):
            serving.servicer.cuts = [num_messages]
            given = client.chat(turns, seed=1)
            assert await told(given) == whole, f"lost after {num_messages} messages"
            if not given.resumes:
                break  # it has no more messages than that
    assert num_messages > 1, "nothing was lost"


async def test_chats_and_streams_without_asyncio_go_on_too(serving: Serving) -> None:
    turns = [{"role": "user", "content": "naïve?"}]

    def ask(*cuts: int) -> Told:
        serving.servicer.cuts = list(cuts)
        with Client(serving.address) as client:
            return sync_told(client.chat(turns, seed=4, max_new_tokens=20, n=2))

    whole = await asyncio.to_thread(ask)
    shaken = await asyncio.to_thread(ask, 0, 1, 2, 5)
    assert shaken == whole
    assert shaken.resumes >= 2
