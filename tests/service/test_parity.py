"""Greedy tokens of random small models through the whole service against transformers, in fp32.

CI runs models that meet every value of every choice between them; the marker ``grid`` runs more.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tests.server import Server
from tests.service.oracle import check_tokens, generate, greedy
from tests.workers.tiny_models import random_config, respell_as_hub, save_model

pytestmark = pytest.mark.processes

NUM_TOKENS = 64
ALL = range(20)
CHOSEN = (2, 4, 6, 11, 12, 17)


def config_of(seed: int) -> Any:
    return random_config(100 + seed, moe=seed % 4 != 3)


def choices_of(seed: int) -> set[tuple[str, str]]:
    """What was drawn for a model, and how its folder is spelled."""
    config = config_of(seed)
    drawn = config.to_diff_dict() | {"num_hidden_layers": config.num_hidden_layers}
    drawn.pop("layer_types", None)
    drawn["mlp_only_layers"] = "mlp_only_layers" in drawn
    drawn["num_attention_heads"] = config.num_attention_heads // config.num_key_value_heads
    drawn["as on the Hub"] = bool(seed % 2)
    return {(name, str(value)) for name, value in drawn.items()}


def test_the_chosen_models_meet_every_choice() -> None:
    chosen = set().union(*map(choices_of, CHOSEN))
    assert chosen == set().union(*map(choices_of, ALL))


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
    expected = [greedy(oracle, prompt, NUM_TOKENS) for prompt in prompts]
    flags = ["--device", "cpu", "--dtype", "float32", "--block-size", rng.choice(["4", "16"])]
    with Server(tmp_path, str(tmp_path), *flags) as server:
        ours = asyncio.run(
            generate(
                server.address, prompts, temperature=0, max_new_tokens=NUM_TOKENS, ignore_eos=True
            )
        )
    ties = sum(
        check_tokens(oracle, *columns) for columns in zip(prompts, ours, expected, strict=True)
    )
    assert ties <= 1, "random models of spread logits rarely tie"
