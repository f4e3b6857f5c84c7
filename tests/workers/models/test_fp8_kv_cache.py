"""Logits over an FP8 cache are transformers' with keys and values rounded so: whole prompts, chunks
and decodes, in plain torch and by interpreted kernels."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.workers.fp8_kv_oracle import over_fp8_cache
from tests.workers.steps import (
    interpreted,
    prefill_step,
    relative_error,
    start_rank,
    step_logits,
)
from tests.workers.tiny_models import random_config, save_model
from workers.rank.startup import LoadedRank

BLOCKS = [7, 3, 5, 1, 8]
# A rounding of fp32 may decide a rounding to FP8: one number of a vector, by a sixteenth.
CLOSE, FAR = 4e-3, 1e-2


def check(rank: LoadedRank, oracle: torch.nn.Module, tokens: list[int]) -> None:
    """A chunk, the next, a decode; and the whole prompt elsewhere."""
    with torch.inference_mode():
        plain = oracle(torch.tensor([tokens])).logits[0]
        exact = over_fp8_cache(oracle)(torch.tensor([tokens])).logits[0]
    assert relative_error(plain, exact) > FAR
    cuts = [0, len(tokens) * 3 // 4, len(tokens) - 1, len(tokens)]
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        blocks = BLOCKS if start == 0 else []
        step = prefill_step(number, 2, tokens[start:stop], blocks, position=start)
        assert relative_error(step_logits(rank, step), exact[start:stop]) <= CLOSE
    whole = step_logits(rank, prefill_step(3, 1, tokens, [10, 11, 12, 13, 14]))
    assert relative_error(whole, exact) <= CLOSE


@pytest.mark.parametrize("seed", range(4))
def test_logits_of_plain_torch(seed: int, tmp_path: Path) -> None:
    config = random_config(seed, moe=seed % 2 == 0)
    oracle = save_model(config, tmp_path, seed)
    rank = start_rank(tmp_path, kv_cache_dtype="fp8_e4m3")
    tokens = torch.randint(config.vocab_size, (41,), generator=torch.manual_seed(seed)).tolist()
    check(rank, oracle, tokens)


@pytest.mark.interpreter
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.grid)])
def test_logits_of_kernels(seed: int, tmp_path: Path) -> None:
    config = random_config(seed, moe=False)
    oracle = save_model(config, tmp_path, seed)
    few = {"max_batch_size": 3, "max_num_batched_tokens": 18, "num_blocks": 16}
    rank = start_rank(tmp_path, interpreted(), kv_cache_dtype="fp8_e4m3", **few)
    tokens = torch.randint(config.vocab_size, (18,), generator=torch.manual_seed(seed)).tolist()
    check(rank, oracle, tokens)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(4))
def test_logits_on_the_gpu(seed: int, tmp_path: Path) -> None:
    config = random_config(seed, moe=seed % 2 == 0)
    oracle = save_model(config, tmp_path, seed)
    rank = start_rank(tmp_path, kv_cache_dtype="fp8_e4m3", device="cuda", cuda_graphs="off")
    tokens = torch.randint(config.vocab_size, (41,), generator=torch.manual_seed(seed)).tolist()
    check(rank, oracle, tokens)
