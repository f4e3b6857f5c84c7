"""Turns of a chat with models whose layers keep states, through the whole service on the CPU."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from switchyard.client import AsyncClient
from tests.server import Server
from tests.service.oracle import check_tokens, greedy
from tests.service.test_families import config_of
from tests.workers.families.draw_parts import VOCAB
from tests.workers.families.draws import save_family

pytestmark = pytest.mark.processes

OUTPUT = 40
CASES = [("qwen3_next", "--tp 2"), ("qwen3_5_moe", "--tp 1")]


async def turn(address: str, prompt: list[int]) -> tuple[list[int], int]:
    """The tokens of an answer, and how many of the prompt's were found."""
    tokens: list[int] = []
    async with (
        AsyncClient(address) as client,
        client.generate(
            prompt, skip_detokenize=True, temperature=0, max_new_tokens=OUTPUT, ignore_eos=True
        ) as stream,
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
            ties += check_tokens(oracle, prompt, ours, greedy(oracle, prompt, OUTPUT))
            prompt = [*prompt, *ours, *(rng.randrange(VOCAB) for _ in range(20))]
    assert ties <= 1
