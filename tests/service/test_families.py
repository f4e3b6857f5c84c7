"""Greedy tokens of every family's kind of attention through the whole service, in fp32 on the CPU.

CI runs the layouts of `CASES`; the marker ``grid`` runs every family in all layouts of 1, 2
and 4 ranks, with the runners in turn.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from frontend.cache_groups import CacheGroups
from tests.server import Server
from tests.service.oracle import check_greedy, generate
from tests.service.test_layouts import LAYOUTS
from tests.workers.families.draw_parts import VOCAB
from tests.workers.families.draws import FAMILIES, save_family
from tests.workers.families.test_windows import config_of as windowed_config
from workers.attention.layer_groups import LayerGroups
from workers.config_json.model_config import ModelConfig

pytestmark = pytest.mark.processes

NUM_TOKENS = 64
RUNNERS = ("fused", "legacy")

# Family, layout, runner.
CASES = [
    ("afmoe", "--tp 2", "fused"),
    ("deepseek_v2", "--tp 2 --ep 1", "legacy"),
    ("deepseek_v3", "--dp 2", "fused"),
]
BOTH_RUNNERS = ("deepseek_v2",)  # in each layout
GRID = [
    pytest.param(family, layout, runner, marks=pytest.mark.grid)
    for row, family in enumerate(FAMILIES)
    for column, layout in enumerate(LAYOUTS)
    for runner in RUNNERS
    if family in BOTH_RUNNERS or runner == RUNNERS[(row + column) % 2]
    if family != "qwen3"  # has no experts
]


def config_of(family: str, layout: str) -> Any:
    """The first draw with mixtures whose heads all ranks can share."""
    words = layout.split()
    tp = int(words[words.index("--tp") + 1]) if "--tp" in words else 1
    for seed in itertools.count():
        config = FAMILIES[family](random.Random(f"{family} {seed}"))
        ours = ModelConfig.from_hf(config.to_dict())
        try:
            ours.check_heads(tp)
        except ValueError:
            continue
        if any(ours.moe_layers):
            return config
    raise AssertionError


@pytest.mark.parametrize(("family", "layout", "runner"), CASES + GRID)
def test_tokens_equal_transformers(family: str, layout: str, runner: str, tmp_path: Path) -> None:
    config = config_of(family, layout)
    oracle = save_family(config, tmp_path)
    rng = random.Random(layout)
    prompts = [[rng.randrange(VOCAB) for _ in range(size)] for size in (1, 9, 40)]
    flags = ["--device", "cpu", "--dtype", "float32", "--block-size", "4", *layout.split()]
    with Server(tmp_path, str(tmp_path), *flags, "--moe-runner", runner) as server:
        ours = asyncio.run(
            generate(
                server.address, prompts, temperature=0, max_new_tokens=NUM_TOKENS, ignore_eos=True
            )
        )
    ties = sum(check_greedy(oracle, *columns) for columns in zip(prompts, ours, strict=True))
    assert [len(each) for each in ours] == [NUM_TOKENS] * len(prompts)
    assert ties <= 1, "random models of spread logits rarely tie"


def test_a_cache_that_is_enough_since_blocks_behind_windows_are_freed(tmp_path: Path) -> None:
    config = windowed_config("mellum")
    oracle = save_family(config, tmp_path)
    rng = random.Random(0)
    prompts = [[rng.randrange(VOCAB) for _ in range(size)] for size in (90, 9)]
    longest = 90 + NUM_TOKENS
    windows = LayerGroups.of(ModelConfig.from_hf(config.to_dict()).attention, 160).windows
    groups = CacheGroups(
        block_size=4, windows=tuple(window or 0 for window in windows), step_tokens=16
    )
    num_blocks = groups.needed(longest)
    assert num_blocks < len(windows) * (longest // 4)
    flags = [
        "--device", "cpu", "--dtype", "float32", "--block-size", "4", "--max-model-len", "160",
        "--max-num-batched-tokens", "16", "--max-batch-size", "4", "--num-blocks", str(num_blocks),
    ]  # fmt: skip
    with Server(tmp_path, str(tmp_path), *flags) as server:
        ours = asyncio.run(
            generate(
                server.address, prompts, temperature=0, max_new_tokens=NUM_TOKENS, ignore_eos=True
            )
        )
    for prompt, output in zip(prompts, ours, strict=True):
        assert len(output) == NUM_TOKENS
        check_greedy(oracle, prompt, output)
