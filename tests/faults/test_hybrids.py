"""A rank is killed that serves a model whose layers keep states: all streams go on, unchanged."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from switchyard.client import AsyncClient
from tests.server import Server
from tests.service.test_families import config_of
from tests.workers.families.draw_parts import VOCAB
from tests.workers.families.draws import save_family

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

NUM_TOKENS = 150


async def streams(address: str, prompts: list[list[int]], begun: asyncio.Event) -> list[list[int]]:
    """Greedy tokens of all at once; ``begun`` is set once each has some."""
    counts = [0] * len(prompts)

    async with AsyncClient(address) as client:

        async def one(number: int) -> list[int]:
            found: list[int] = []
            options = {"temperature": 0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}
            async with client.generate(prompts[number], skip_detokenize=True, **options) as stream:
                async for delta in stream:
                    found += delta.token_ids
                    counts[number] = len(found)
                    if min(counts) > 20:
                        begun.set()
            return found

        return await asyncio.gather(*map(one, range(len(prompts))))


async def test_streams_go_on_where_a_rank_was_killed(tmp_path: Path) -> None:
    """Their states are gone; those of their prefixes too."""
    save_family(config_of("qwen3_next", "--tp 2"), tmp_path)
    rng = random.Random(0)
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.choice([5, 70, 130]))] for _ in range(6)]
    flags = ["--device", "cpu", "--dtype", "float32", "--tp", "2"]
    with Server(tmp_path, str(tmp_path), *flags) as server:
        quiet = await streams(server.address, prompts, asyncio.Event())
        begun = asyncio.Event()
        running = asyncio.create_task(streams(server.address, prompts, begun))
        await begun.wait()
        os.kill(server.ranks()[1], signal.SIGKILL)
        assert await running == quiet
        assert await streams(server.address, prompts, asyncio.Event()) == quiet
