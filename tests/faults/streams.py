"""Requests of every kind, and the oracle: each ends once, as it does in an undisturbed run."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from switchyard.client import AsyncClient, AsyncStream
from switchyard.v1 import inference_pb2 as pb
from tests.faults.inject import GRIP, POISON, STALL

MAX_LOGPROB_ERROR = 1e-3
"""Of the same token, computed in a prefill and in a decode: they differ in their last bits."""

INTEGERS = {"type": "array", "items": {"type": "integer"}, "minItems": 60}
CALL = {
    "type": "object",
    "properties": {"name": {"const": "add"}, "arguments": INTEGERS},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

# The first seven are all that some tests take.
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.7, "regex": "([a-z]{1,6}[ ,;0-9]){200}"},
    {"temperature": 1.7, "n": 2},
    {"temperature": 1.7, "tools": [ADD], "json_schema": CALL},
    {"temperature": 1.7, "presence_penalty": 0.7, "logprobs": True, "top_logprobs": 2},
    {"temperature": 0.0, "prompt_logprobs": True, "top_logprobs": 1, "echo": True},
    {"temperature": 1.7, "n": 3, "stop": ["e t", "1"], "stop_token_ids": list(range(600, 640))},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 1.7, "n": 2, "json_schema": INTEGERS, "logprobs": True},
    {"temperature": 1.7},
    {"temperature": 1.4, "top_p": 0.9, "top_k": 40},
    {"temperature": 1.7, "logit_bias": {17: 5.0, 23: -5.0}, "bad_token_ids": [9, 11]},
    {"temperature": 0.0, "grammar": 'start: (/[0-9]{1,3}/ ("+" | "*")){200}'},
    {"temperature": 1.7, "bad_words": ["the", "and", "in"]},
]
LANGUAGES = {"regex", "json_schema", "grammar"}


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One request: a prompt's, or where tools are among the options, a chat's."""

    prompt: tuple[int, ...]
    options: dict[str, Any]

    def stream(self, client: AsyncClient, **more: Any) -> AsyncStream:
        if "tools" in self.options:
            turn = {"role": "user", "content": " + ".join(map(str, self.prompt))}
            return client.chat([turn], **self.options, **more)
        return client.generate(list(self.prompt), **self.options, **more)


class Near(list[float]):
    """Log-probabilities that equal others which nearly do."""

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Near)
        differences = (abs(one - two) for one, two in zip(self, other, strict=False))
        return len(self) == len(other) and max(differences, default=0.0) <= MAX_LOGPROB_ERROR


@dataclasses.dataclass(slots=True)
class Answer:
    """What a stream gave, sample by sample."""

    token_ids: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    text: dict[int, str] = dataclasses.field(default_factory=dict)
    logprobs: dict[int, Near] = dataclasses.field(default_factory=dict)
    finish_reasons: dict[int, int] = dataclasses.field(default_factory=dict)
    prompt_logprobs: Near = dataclasses.field(default_factory=Near)
    usage: tuple[int, int] = (0, 0)
    replays: int = 0
    resumes: int = 0

    def add(self, delta: pb.Delta) -> None:
        index = delta.index
        assert index not in self.finish_reasons, "a delta after a sample's end"
        self.token_ids.setdefault(index, []).extend(delta.token_ids)
        self.text[index] = self.text.get(index, "") + delta.text
        logprobs = self.logprobs.setdefault(index, Near())
        # Token by token: how many a message holds depends on what happens meanwhile.
        for place, logprob in enumerate(delta.logprobs):
            logprobs.append(logprob)
            if delta.top_logprobs:
                logprobs.extend(delta.top_logprobs[place].logprobs)
        if delta.finish_reason:
            self.finish_reasons[index] = delta.finish_reason

    def end(self, stream: AsyncStream) -> None:
        usage = stream.finished.usage
        self.usage = usage.prompt_tokens, usage.completion_tokens
        self.replays = stream.finished.timings.replays
        self.resumes = stream.resumes
        self.prompt_logprobs.extend(stream.started.prompt_logprobs)

    def outcome(self) -> tuple[Any, ...]:
        """What must not depend on what happened meanwhile."""
        told = self.token_ids, self.text, self.logprobs, self.prompt_logprobs
        return *told, self.finish_reasons, self.usage


def outcomes(given: Sequence[Answer]) -> list[tuple[Any, ...]]:
    return [each.outcome() for each in given]


def mixed_requests(seed: int, count: int, max_new_tokens: int = 120) -> list[Asked]:
    """Some of each kind, none of which ends much earlier than it may."""
    rng = random.Random(seed)
    asked = []
    for number in range(count):
        options = dict(KINDS[number % len(KINDS)])
        options["seed"] = rng.getrandbits(63)
        options["max_new_tokens"] = rng.randint(max_new_tokens // 2, max_new_tokens)
        if not LANGUAGES & options.keys():
            # The spoilt tokens would come again, in what is computed anew after a loss.
            spoilt = [POISON, STALL, GRIP]
            options["bad_token_ids"] = [*options.get("bad_token_ids", ()), *spoilt]
            options["ignore_eos"] = True
        prompt = tuple(rng.randrange(3, POISON) for _ in range(rng.randint(1, 60)))
        asked.append(Asked(prompt, options))
    return asked


class Progress:
    """Tokens that all streams have received, and who waits for them to grow."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._grew = asyncio.Event()

    def add(self, num_tokens: int) -> None:
        self.num_tokens += num_tokens
        self._grew.set()

    async def reach(self, num_tokens: int) -> None:
        """Wait until so many have come."""
        while self.num_tokens < num_tokens:
            self._grew.clear()
            await self._grew.wait()


async def answer(client: AsyncClient, asked: Asked, progress: Progress | None = None) -> Answer:
    """One request to its end; asserts what must hold of any stream."""
    got = Answer()
    async with asked.stream(client) as stream:
        async for delta in stream:
            got.add(delta)
            if progress is not None:
                progress.add(len(delta.token_ids))
    got.end(stream)
    prompt_tokens, completion_tokens = got.usage
    assert len(got.finish_reasons) == asked.options.get("n", 1)
    assert completion_tokens == sum(map(len, got.token_ids.values()))
    assert prompt_tokens == len(asked.prompt) or "tools" in asked.options
    return got


async def answers(
    address: str, requests: list[Asked], progress: Progress | None = None, **client_options: Any
) -> list[Answer]:
    """All requests at once, over one connection."""
    async with AsyncClient(address, **client_options) as client:
        return await asyncio.gather(*(answer(client, asked, progress) for asked in requests))
