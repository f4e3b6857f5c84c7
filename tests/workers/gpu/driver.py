"""Driving a rank on a GPU as a frontend with one replica would, with made-up prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from switchyard.worker.link import MAX_STEPS_IN_FLIGHT
from switchyard.worker.v1 import worker_pb2
from tests.workers.steps import decode_step, prefill_step
from workers.rank.startup import LoadedRank
from workers.step.runner import StepHandle

CUDA = {"device": "cuda", "memory_fraction": 0.3}
CONFIGS = Path(__file__).parents[3] / "benchmarks" / "configs"

Params = dict[str, Any]
# Whatever a request may ask of the sampler.
PARAMS: list[Params] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "seed": 2**63 + 5, "top_p": 0.9, "top_k": 40},
    {"temperature": 0.7, "seed": 8, "min_p": 0.05},
    {"temperature": 1.2, "seed": 9, "suppressed_token_ids": [2, 7], "suppress_until": 1000},
    {"temperature": 0.0, "suppressed_token_ids": [2], "suppress_until": 40},
]


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A sequence that begins."""

    tokens: list[int]
    params: Params


class Frontend:
    """Makes the steps of one replica: knows every slot's position, and hands out blocks."""

    def __init__(self, rank: LoadedRank) -> None:
        self.rank = rank
        self.positions: dict[int, int] = {}
        self.blocks = iter(range(rank.num_blocks))
        self.num_steps = 0

    def step(
        self, decodes: Sequence[int] = (), prompts: Mapping[int, Prompt] | None = None
    ) -> worker_pb2.StepRequest:
        """A token of each slot of `decodes`, and whole prompts by slot."""
        prompts = prompts or {}
        positions = [self.positions[slot] for slot in decodes]
        blocks = [self._grow(slot, 1) for slot in decodes]
        step = decode_step(self.num_steps, list(decodes), positions, blocks)
        step.decode_only = not prompts
        for slot, prompt in prompts.items():
            self.positions[slot] = 0
            row = prefill_step(
                0, slot, prompt.tokens, self._grow(slot, len(prompt.tokens)), **prompt.params
            )
            for field, values in row.ListFields():
                if field.name not in ("step_id", "max_replica_tokens"):
                    getattr(step, field.name).extend(values)
        step.max_replica_tokens = len(decodes) + sum(len(p.tokens) for p in prompts.values())
        self.num_steps += 1
        return step

    def _grow(self, slot: int, num_tokens: int) -> list[int]:
        """Blocks for more tokens of a slot."""
        size = self.rank.runner.builder.block_size
        before = self.positions[slot]
        self.positions[slot] = before + num_tokens
        count = -(-self.positions[slot] // size) - -(-before // size)
        return list(itertools.islice(self.blocks, count))


def random_prompts(count: int, vocab_size: int, longest: int, seed: int) -> dict[int, Prompt]:
    rng = random.Random(seed)
    return {
        slot: Prompt(
            [rng.randrange(3, vocab_size) for _ in range(rng.randint(1, longest))],
            PARAMS[slot % len(PARAMS)],
        )
        for slot in range(count)
    }


def in_flight(rank: LoadedRank, steps: Iterator[worker_pb2.StepRequest]) -> Iterator[list[int]]:
    """Tokens of each step, some steps launched before the first result is asked for."""
    flying: list[StepHandle] = []
    for step in steps:
        flying.append(rank.runner.launch(step))
        if len(flying) == MAX_STEPS_IN_FLIGHT:
            yield list(flying.pop(0).result().token_ids)
    for handle in flying:
        yield list(handle.result().token_ids)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Kernels that Triton compiles, or loads from its cache, meanwhile."""
    names: list[str] = []
    knobs = triton.knobs.runtime
    before = knobs.jit_post_compile_hook
    knobs.jit_post_compile_hook = lambda **about: names.append(about["fn"].name)
    try:
        yield names
    finally:
        knobs.jit_post_compile_hook = before


def check_compilations(rank: LoadedRank, vocab_size: int, longest: int) -> None:
    """Nothing is compiled by prompts of any length, decodes of any number of rows and both, with
    all that rows may ask; ``longest``: of the prompts beside decodes. Takes 40 slots."""
    frontend, rng = Frontend(rank), random.Random(2)
    with compilations() as names:
        for slot, prompt in random_prompts(40, vocab_size, 300, 4).items():
            rank.runner.launch(frontend.step(prompts={slot: prompt})).result()
        assert names == [], names
        for count in range(1, 41):
            rank.runner.launch(frontend.step(rng.sample(range(40), count))).result()
        assert names == [], names
        for slot, prompt in random_prompts(40, vocab_size, longest, 5).items():
            decodes = rng.sample([s for s in range(40) if s != slot], rng.randint(1, 39))
            rank.runner.launch(frontend.step(decodes, {slot: prompt})).result()
        together = random_prompts(40, vocab_size, longest // 40, 6)
        rank.runner.launch(frontend.step(prompts=together)).result()
    assert names == [], names


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
