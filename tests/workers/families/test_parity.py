"""Logits of every family against transformers, in fp32 on the CPU.

CI runs two models of each in plain torch, and one of some families by interpreted kernels; ``grid``
runs eight of each, and one of all families.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.workers.families.draw_parts import VOCAB
from tests.workers.families.draws import FAMILIES, save_family
from tests.workers.steps import (
    decode_step,
    drawn_logits,
    interpreted,
    prefill_step,
    relative_error,
    start_rank,
    step_logits,
)

NUM_MODELS = 8
# By whose kernels' options all of them are met.
INTERPRETED = (
    "afmoe", "deepseek_v2", "ernie4_5_moe", "flex_olmo", "hunyuan_v1_moe", "laguna", "mistral4",
    "olmoe", "phimoe", "qwen2_moe",
)  # fmt: skip
MODELS = [
    pytest.param(family, seed, marks=() if seed < 2 else pytest.mark.grid)
    for family in FAMILIES
    for seed in range(NUM_MODELS)
]


@pytest.fixture(autouse=True)
def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take as long as all else here."""
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))


def tokens_of(seed: int, count: int) -> list[int]:
    return torch.randint(VOCAB, (count,), generator=torch.manual_seed(seed)).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "seed"), MODELS)
def test_logits_equal_transformers(family: str, seed: int, tmp_path: Path) -> None:
    """A whole prompt; the same in chunks, and a decode; by a runner each."""
    config = FAMILIES[family](random.Random(f"{family} {seed}"))
    oracle = save_family(config, tmp_path, seed)
    rank = start_rank(
        tmp_path, block_size=(16, 4, 5)[seed % 3], moe_runner=("fused", "legacy")[seed % 2]
    )
    tokens = tokens_of(seed, 37)
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    blocks = torch.randperm(40, generator=torch.manual_seed(seed)).tolist()
    ours = step_logits(rank, prefill_step(0, 2, tokens, blocks[:20]))
    assert relative_error(ours, expected) <= 1e-4
    drawn = drawn_logits(rank, prefill_step(1, 2, tokens, blocks[:20]))
    assert relative_error(drawn, expected[36:]) <= 1e-4
    chunks = [(0, 1), (1, 17), (17, 36)]
    parts = [
        step_logits(
            rank,
            prefill_step(
                number, 5, tokens[a:b], blocks[20:] if number == 0 else [], position=a, draw=False
            ),
        )
        for number, (a, b) in enumerate(chunks)
    ]
    rank.runner.builder.last_token[5] = tokens[36]
    parts.append(step_logits(rank, decode_step(3, [5], [36], [[]])))
    assert relative_error(torch.cat(parts), expected) <= 1e-4


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "family",
    [
        each if each in INTERPRETED else pytest.param(each, marks=pytest.mark.grid)
        for each in FAMILIES
    ],
)
def test_kernels_compute_the_same(family: str, tmp_path: Path) -> None:
    """A prompt in chunks, of the last one the token that is drawn behind, then a decode."""
    config = FAMILIES[family](random.Random(f"{family} 0"))
    oracle = save_family(config, tmp_path)
    rank = start_rank(tmp_path, interpreted(), block_size=4, max_batch_size=2)
    tokens = tokens_of(0, 12)
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    first = step_logits(rank, prefill_step(0, 1, tokens[:5], [9, 3, 7, 1], draw=False)).clone()
    last = drawn_logits(rank, prefill_step(1, 1, tokens[5:11], [], position=5)).clone()
    rank.runner.builder.last_token[1] = tokens[11]
    next_one = step_logits(rank, decode_step(2, [1], [11], [[]]))
    known = torch.cat([expected[:5], expected[10:]])
    assert relative_error(torch.cat([first, last, next_one]), known) <= 1e-4


@pytest.mark.parametrize(("longest", "window"), [(64, 16), (16, None), (8, None)])
def test_a_window_that_no_sequence_meets_is_none(
    longest: int, window: int | None, tmp_path: Path
) -> None:
    """So that its prompts may be split as others are."""
    config = FAMILIES["qwen3_moe"](random.Random(0))
    config.use_sliding_window, config.sliding_window = True, 16
    save_family(config, tmp_path)
    rank = start_rank(tmp_path, interpreted(), max_model_len=longest)
    (kind,) = rank.runner.builder.attention.kinds
    assert kind.window == window
    assert {layer.self_attn.kind for layer in rank.model.layers} == {kind}
