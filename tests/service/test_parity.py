"""Greedy tokens of random small models through the whole service against transformers, in fp32.

CI runs one of each kind and spelling, the marker ``grid`` more; those of
tests/workers/models/test_parity.py meet every choice.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tests.server import Server
from tests.service.oracle import check_greedy, generate
from tests.workers.tiny_models import random_config, respell_as_hub, save_model

pytestmark = pytest.mark.processes

NUM_TOKENS = 64
ALL = range(20)
CHOSEN = (2, 11, 17)  # experts, dense as on the Hub, experts as on the Hub


def config_of(seed: int) -> Any:
    return random_config(100 + seed, moe=seed % 4 != 3)


@pytest.mark.parametrize(
    "seed", [seed if seed in CHOSEN else pytest.param(seed, marks=pytest.mark.grid) for seed in ALL]
)
def test_tokens_equal_transformers(seed: int, tmp_path: Path) -> None:
    config = config_of(seed)
    oracle = save_model(config, tmp_path, seed)
    if seed % 2:
        respell_as_hub(tmp_path)
    rng = random.Random(seed)
    prompts = [[rng.randrange(config.vocab_size) for _ in range(size)] for size in (1, 9, 40)]
    flags = ["--device", "cpu", "--dtype", "float32", "--block-size", rng.choice(["4", "16"])]
    with Server(tmp_path, str(tmp_path), *flags) as server:
        ours = asyncio.run(
            generate(
                server.address, prompts, temperature=0, max_new_tokens=NUM_TOKENS, ignore_eos=True
            )
        )
    assert [len(each) for each in ours] == [NUM_TOKENS] * len(prompts)
    ties = sum(check_greedy(oracle, *columns) for columns in zip(prompts, ours, strict=True))
    assert ties <= 1, "random models of spread logits rarely tie"
