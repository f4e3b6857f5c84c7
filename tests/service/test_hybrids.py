"""Models whose layers keep states through the whole service on the CPU: turns of a chat, chunks,
preemption."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from switchyard.client import AsyncClient
from tests.server import Server
from tests.service.oracle import check_greedy, generate
from tests.service.test_families import config_of
from tests.service.test_layouts import load_of
from tests.workers.families.draw_parts import VOCAB
from tests.workers.families.draws import save_family

pytestmark = pytest.mark.processes

OUTPUT = 40
GREEDY = {"temperature": 0, "max_new_tokens": OUTPUT, "ignore_eos": True}
CASES = [("qwen3_next", "--tp 2"), ("qwen3_5_moe", "--tp 1")]


async def turn(address: str, prompt: list[int]) -> tuple[list[int], int]:
    """The tokens of an answer, and how many of the prompt's were found."""
    tokens: list[int] = []
    async with (
        AsyncClient(address) as client,
        client.generate(prompt, skip_detokenize=True, **GREEDY) as stream,
    ):
        async for delta in stream:
            tokens += delta.token_ids
        return tokens, stream.finished.usage.cached_prompt_tokens


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_turns_go_on_from_kept_states(family: str, layout: str, tmp_path: Path) -> None:
    oracle = save_family(config_of(family, layout), tmp_path)
    rng = random.Random(layout)
    flags = ["--device", "cpu", "--dtype", "float32", *layout.split()]
    with Server(tmp_path, str(tmp_path), *flags) as server:
        prompt = [rng.randrange(VOCAB) for _ in range(150)]
        ties = 0
        for before in (0, 150 + OUTPUT, 170 + 2 * OUTPUT):
            ours, found = asyncio.run(turn(server.address, prompt))
            assert found == before // 64 * 64
            assert len(ours) == OUTPUT
            ties += check_greedy(oracle, prompt, ours)
            prompt = [*prompt, *ours, *(rng.randrange(VOCAB) for _ in range(20))]
    assert ties <= 1


@pytest.mark.parametrize(
    ("family", "chunk"),
    [
        ("qwen3_next", 16),
        ("qwen3_5_moe", 63),
        *(
            pytest.param(family, chunk, marks=pytest.mark.grid)
            for family in ("qwen3_next", "qwen3_5_moe")
            for chunk in (1, 16, 63, 8192)
        ),
    ],
)
def test_prompts_in_chunks_of_any_size(family: str, chunk: int, tmp_path: Path) -> None:
    oracle = save_family(config_of(family, "--tp 1"), tmp_path)
    flags = ["--device", "cpu", "--dtype", "float32", "--max-num-batched-tokens", str(chunk)]
    flags += ["--max-batch-size", str(min(chunk, 4))]
    rng = random.Random(chunk)
    prompts = [[rng.randrange(VOCAB) for _ in range(count)] for count in (150, 64, 5)]
    with Server(tmp_path, str(tmp_path), *flags) as server:
        ours = asyncio.run(generate(server.address, prompts, **GREEDY))
    for prompt, tokens in zip(prompts, ours, strict=True):
        assert len(tokens) == OUTPUT
        check_greedy(oracle, prompt, tokens)


async def cancelled_after(address: str, prompt: list[int], count: int) -> None:
    """A request that its client leaves after so many tokens."""
    async with (
        AsyncClient(address) as client,
        client.generate(prompt, skip_detokenize=True, **GREEDY) as stream,
    ):
        async for delta in stream:
            count -= len(delta.token_ids)
            if count <= 0:
                return


def test_preempted_and_among_cancelled_ones_tokens_are_the_same(tmp_path: Path) -> None:
    """Over a cache of 384 tokens that six prompts fit in, and not their outputs, with few states to
    go on from; prompts begin alike, and all are asked again."""
    oracle = save_family(config_of("qwen3_next", "--tp 1"), tmp_path)
    flags = ["--device", "cpu", "--dtype", "float32", "--max-num-batched-tokens", "48"]
    flags += ["--max-batch-size", "6", "--num-blocks", "24", "--kept-states", "3"]
    rng = random.Random(5)
    common = [rng.randrange(VOCAB) for _ in range(70)]
    lengths, longer = (2, 30, 5, 21, 16, 9), {**GREEDY, "max_new_tokens": 2 * OUTPUT}
    prompts = [common + [rng.randrange(VOCAB) for _ in range(each)] for each in lengths]

    async def all_of(address: str) -> list[list[int]]:
        left = [cancelled_after(address, prompt, 1 + 6 * n) for n, prompt in enumerate(prompts)]
        *_, tokens = await asyncio.gather(*left, generate(address, prompts, **longer))
        return tokens

    with Server(tmp_path, str(tmp_path), *flags) as server:
        found = [asyncio.run(all_of(server.address)) for _ in range(2)]
        load = load_of(server)
    assert load.preemptions > 0
    assert load.prefix_hit_tokens > 0
    for tokens in found:
        for prompt, ours in zip(prompts, tokens, strict=True):
            assert len(ours) == 2 * OUTPUT
            check_greedy(oracle, prompt, ours)
    assert 0 < load.kept_states <= 3
