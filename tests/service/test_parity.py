"""Greedy tokens of random small models through the whole service against transformers, in fp32."""

import asyncio
import random
from pathlib import Path

import pytest

from benchmarks.server import started
from tests.service.oracle import check_tokens, generate, greedy
from tests.workers.tiny_models import random_config, respell_as_hub, save_model

pytestmark = pytest.mark.processes

NUM_TOKENS = 64


@pytest.mark.parametrize("seed", range(20))
def test_tokens_equal_transformers(seed: int, tmp_path: Path) -> None:
    moe = seed % 4 != 3
    config = random_config(100 + seed, moe=moe)
    oracle = save_model(config, tmp_path, seed)
    if seed % 2:
        respell_as_hub(tmp_path)
    rng = random.Random(seed)
    prompts = [[rng.randrange(config.vocab_size) for _ in range(size)] for size in (1, 9, 40)]
    expected = [greedy(oracle, prompt, NUM_TOKENS) for prompt in prompts]
    flags = ["--device", "cpu", "--dtype", "float32", "--block-size", rng.choice(["4", "16"])]
    with started(str(tmp_path), flags, 60) as server:
        ours = asyncio.run(
            generate(
                server.address, prompts, temperature=0, max_new_tokens=NUM_TOKENS, ignore_eos=True
            )
        )
    ties = sum(
        check_tokens(oracle, *columns) for columns in zip(prompts, ours, expected, strict=True)
    )
    assert ties <= 1, "random models of spread logits rarely tie"
