"""Logits of the worker's models run by kernels, against transformers, in fp32."""

from pathlib import Path

import pytest
import torch

from tests.workers.models import random_config, save_model
from tests.workers.steps import decode_step, interpreted, prefill_step, start_rank, step_logits
from tests.workers.test_parity import relative_error


@pytest.mark.parametrize(("seed", "moe"), [(1, True), (2, True), (4, True), (7, True), (3, False)])
def test_logits_equal_transformers(seed: int, moe: bool, tmp_path: Path) -> None:
    config = random_config(seed, moe=moe)
    oracle = save_model(config, tmp_path, seed)
    rank = start_rank(tmp_path, interpreted(), block_size=(16, 4, 5)[seed % 3])
    tokens = torch.randint(config.vocab_size, (37,), generator=torch.manual_seed(seed)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    blocks = torch.randperm(40, generator=torch.manual_seed(seed)).tolist()
    chunks = [(0, 1), (1, 17), (17, 37)]
    parts = [
        step_logits(
            rank,
            prefill_step(
                number, 5, tokens[a:b], blocks[20:] if number == 0 else [], position=a, draw=False
            ),
        ).clone()
        for number, (a, b) in enumerate(chunks)
    ]
    assert relative_error(torch.cat(parts), expected) <= 1e-4


def test_draws_equal_those_of_plain_torch(tmp_path: Path) -> None:
    """Prompts, then decodes together, greedy, sampled, filtered and with suppressed tokens."""
    config = random_config(1, moe=True)
    save_model(config, tmp_path)
    drawn = []
    for context in (None, interpreted()):
        rank = start_rank(tmp_path, context)
        generator = torch.manual_seed(7)
        params = [
            {"temperature": 0.0},
            {"temperature": 1.0, "seed": 11},
            {"temperature": 0.8, "seed": 2**63 + 5, "top_p": 0.8, "top_k": 20},
            {"temperature": 1.3, "seed": 4, "suppressed_token_ids": [3, 5], "suppress_until": 99},
        ]
        tokens = []
        for slot, asked in enumerate(params):
            prompt = torch.randint(config.vocab_size, (3 + 7 * slot,), generator=generator)
            blocks = [9 + 4 * slot + block for block in range(4)]
            step = prefill_step(slot, slot, prompt.tolist(), blocks, **asked)
            tokens.append(list(rank.runner.launch(step).result().token_ids))
        for number in range(6):
            positions = [3 + 7 * slot + number for slot in range(4)]
            step = decode_step(4 + number, [0, 1, 2, 3], positions, [[]] * 4)
            tokens.append(list(rank.runner.launch(step).result().token_ids))
        drawn.append(tokens)
    assert drawn[0] == drawn[1]
