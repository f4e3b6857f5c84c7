"""Log-probabilities against transformers and against sorting the whole vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.steps import decode_step, interpreted, prefill_step, start_rank
from tests.workers.tiny_models import random_config, save_model
from workers.rank.startup import LoadedRank
from workers.sampling.logprobs import most_likely

NUM_TOKENS = 11
TOP = 5


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocab_size=st.integers(1, 700),
    most=st.integers(0, 21),
    distinct=st.sampled_from([1, 3, 1000]),
)
def test_the_most_likely_are_the_first_of_a_sorted_vocabulary(
    seed: int, vocab_size: int, most: int, distinct: int
) -> None:
    """Of equal ones the lower id, wherever chunks end; few distinct values make many equal."""
    most = min(most, vocab_size)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-distinct, distinct, (3, vocab_size), generator=generator) / 4
    values, ids = most_likely(x, most)
    for row, (value, token) in enumerate(zip(values.tolist(), ids.tolist(), strict=True)):
        order = sorted(range(vocab_size), key=lambda i: (-float(x[row, i]), i))[:most]
        assert token == order
        assert value == x[row, order].tolist()


def prompt_logprobs(
    rank: LoadedRank, tokens: list[int], size: int
) -> tuple[list[float], list[int], list[float]]:
    """Of a prompt that comes in chunks of a size, and draws nothing."""
    asked = {
        "num_logprobs": TOP + 1,
        "prompt_logprobs": True,
        "history_token_ids": tokens,
        "num_prompt_tokens": len(tokens),
    }
    columns: tuple[list[float], list[int], list[float]] = ([], [], [])
    for first in range(0, len(tokens), size):
        blocks = [7, 3, 5] if first == 0 else []
        step = prefill_step(
            first, 2, tokens[first : first + size], blocks, position=first, draw=False, **asked
        )
        result = rank.runner.launch(step).result()
        columns[0].extend(result.prompt_logprobs)
        columns[1].extend(result.prompt_top_token_ids)
        columns[2].extend(result.prompt_top_logprobs)
    return columns


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
def test_prompts_in_chunks_of_any_size_equal_transformers(
    kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))
    config = random_config(35, moe=True)
    oracle = save_model(config, tmp_path, 35)
    rank = start_rank(tmp_path, interpreted() if kernels else None, block_size=4)
    tokens = torch.randint(config.vocab_size, (NUM_TOKENS,), generator=torch.manual_seed(3))
    with torch.inference_mode():
        expected = oracle(tokens[None]).logits[0].log_softmax(-1)[:-1]
    top = expected.topk(TOP)
    for size in (4,) if kernels else range(1, NUM_TOKENS + 1):
        own, ids, values = prompt_logprobs(rank, tokens.tolist(), size)
        assert own == pytest.approx(expected.gather(1, tokens[1:, None])[:, 0].tolist(), abs=1e-3)
        assert ids == top.indices.flatten().tolist()
        assert values == pytest.approx(top.values.flatten().tolist(), abs=1e-3)


def test_draws_report_the_models_own_distribution(tmp_path: Path) -> None:
    """Whatever temperature, penalty or bias made of it; the drawn token need not be likely."""
    config = random_config(1, moe=True)
    oracle = save_model(config, tmp_path)
    rank = start_rank(tmp_path)
    tokens = torch.randint(config.vocab_size, (5,), generator=torch.manual_seed(2)).tolist()
    asked = {
        "temperature": 1.7, "seed": 6, "num_logprobs": TOP + 1, "repetition_penalty": 1.5,
        "bias_token_ids": [9], "bias_values": [5.0], "history_token_ids": tokens,
        "num_prompt_tokens": 5,
    }  # fmt: skip
    results = [rank.runner.launch(prefill_step(0, 3, tokens, [4, 1], **asked)).result()]
    for number in range(1, 8):
        step = decode_step(number, [3], [4 + number], [[]])
        results.append(rank.runner.launch(step).result())
    drawn = [result.token_ids[0] for result in results]
    with torch.inference_mode():
        logits = oracle(torch.tensor([tokens + drawn])).logits[0, 4:-1]
    expected = logits.log_softmax(-1)
    assert len(set(drawn)) > 2
    for row, result in enumerate(results):
        assert result.logprobs == pytest.approx([float(expected[row, drawn[row]])], abs=1e-3)
        assert list(result.top_token_ids) == expected[row].topk(TOP).indices.tolist()
        top = expected[row].topk(TOP).values.tolist()
        assert result.top_logprobs == pytest.approx(top, abs=1e-3)
