"""Requests of every kind, and the oracle: each ends once, as it does in an undisturbed run."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from switchyard.client import AsyncClient
from tests.faults.inject import POISON

JSON_SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    prompt: tuple[int, ...]
    options: dict[str, Any]


@dataclasses.dataclass(slots=True)
class Answer:
    """What a stream gave, sample by sample."""

    token_ids: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    text: dict[int, str] = dataclasses.field(default_factory=dict)
    finish_reasons: dict[int, int] = dataclasses.field(default_factory=dict)
    usage: tuple[int, int] = (0, 0)
    replays: int = 0
    resumes: int = 0

    def outcome(self) -> tuple[Any, ...]:
        """What must not depend on what happened meanwhile."""
        return self.token_ids, self.text, self.finish_reasons, self.usage


def outcomes(given: Sequence[Answer]) -> list[tuple[Any, ...]]:
    return [each.outcome() for each in given]


def mixed_requests(seed: int, count: int, max_new_tokens: int = 120) -> list[Asked]:
    """Greedy and seeded ones, with penalties, log-probabilities, masks and several samples."""
    rng = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 40},
        {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"temperature": 1.0, "presence_penalty": 0.7, "logprobs": True, "top_logprobs": 2},
        {"temperature": 1.0, "n": 2},
        {"temperature": 1.0, "logit_bias": {17: 5.0, 23: -5.0}, "bad_token_ids": [9, 11]},
    ]
    asked = []
    for number in range(count):
        options = dict(kinds[number % len(kinds)])
        options |= {"seed": rng.getrandbits(63), "ignore_eos": True}
        options["max_new_tokens"] = rng.randint(max_new_tokens // 2, max_new_tokens)
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
    async with client.generate(list(asked.prompt), **asked.options) as stream:
        async for delta in stream:
            index = delta.index
            assert index not in got.finish_reasons, "a delta after a sample's end"
            got.token_ids.setdefault(index, []).extend(delta.token_ids)
            got.text[index] = got.text.get(index, "") + delta.text
            if delta.finish_reason:
                got.finish_reasons[index] = delta.finish_reason
            if progress is not None:
                progress.add(len(delta.token_ids))
    usage = stream.finished.usage
    got.usage = usage.prompt_tokens, usage.completion_tokens
    got.replays, got.resumes = stream.finished.timings.replays, stream.resumes
    assert len(got.finish_reasons) == asked.options.get("n", 1)
    assert usage.completion_tokens == sum(map(len, got.token_ids.values()))
    assert usage.prompt_tokens == len(asked.prompt)
    return got


async def answers(
    address: str, requests: list[Asked], progress: Progress | None = None, **client_options: Any
) -> list[Answer]:
    """All requests at once, over one connection."""
    async with AsyncClient(address, **client_options) as client:
        return await asyncio.gather(*(answer(client, asked, progress) for asked in requests))
