"""Logits of the worker's models against transformers, in fp32 on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.steps import decode_step, prefill_step, relative_error, start_rank, step_logits
from tests.workers.tiny_models import random_config, respell_as_hub, save_model

pytestmark = pytest.mark.slow

# A third is dense, and has no runner to choose.
CASES = [
    (seed, seed % 3 != 0, moe_runner)
    for seed in range(24)
    for moe_runner in (("fused", "legacy") if seed % 3 else ("auto",))
]


def choices_of(seed: int, moe: bool) -> set[tuple[bool, str, str]]:
    """What was drawn for a model."""
    config = random_config(seed, moe=moe)
    drawn = config.to_diff_dict() | {"num_hidden_layers": config.num_hidden_layers}
    drawn.pop("layer_types", None)
    drawn["mlp_only_layers"] = "mlp_only_layers" in drawn
    drawn["num_attention_heads"] = config.num_attention_heads // config.num_key_value_heads
    return {(moe, name, str(value)) for name, value in drawn.items()}


def test_the_models_meet_every_choice() -> None:
    met = set().union(*(choices_of(seed, moe) for seed, moe, _ in CASES))
    assert met == set().union(*(choices_of(n, moe) for n in range(100) for moe in (True, False)))


@pytest.mark.parametrize(("seed", "moe", "moe_runner"), CASES)
def test_logits_equal_transformers(seed: int, moe: bool, moe_runner: str, tmp_path: Path) -> None:
    config = random_config(seed, moe=moe)
    oracle = save_model(config, tmp_path, seed)
    if seed % 2:
        respell_as_hub(tmp_path)
    rank = start_rank(tmp_path, block_size=(16, 4, 5)[seed % 3], moe_runner=moe_runner)
    tokens = torch.randint(config.vocab_size, (37,), generator=torch.manual_seed(seed)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]

    # Blocks in random order; a whole prompt, then the same in chunks of 1, 16 and the rest.
    blocks = torch.randperm(40, generator=torch.manual_seed(seed)).tolist()
    ours = step_logits(rank, prefill_step(0, 2, tokens, blocks[:20]))
    assert relative_error(ours, expected) <= 1e-4
    chunks = [(0, 1), (1, 17), (17, 37)]
    parts = [
        step_logits(
            rank,
            prefill_step(
                number, 5, tokens[a:b], blocks[20:] if number == 0 else [], position=a, draw=False
            ),
        )
        for number, (a, b) in enumerate(chunks)
    ]
    assert relative_error(torch.cat(parts), expected) <= 1e-4


SCALINGS = [
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {
        "rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 16,
        "low_freq_factor": 1.0, "high_freq_factor": 2.0,
    },
]  # fmt: skip


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_scaled_rotary_embeddings_equal_transformers(
    scaling: dict[str, Any], tmp_path: Path
) -> None:
    config = random_config(1, moe=True)
    config.rope_parameters = {**scaling, "rope_theta": 1e4}
    oracle = save_model(config, tmp_path)
    rank = start_rank(tmp_path)
    tokens = torch.randint(config.vocab_size, (37,), generator=torch.manual_seed(5)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    ours = step_logits(rank, prefill_step(0, 2, tokens, list(range(3))))
    assert relative_error(ours, expected) <= 1e-4


def test_decodes_of_a_mixed_batch_equal_transformers(tmp_path: Path) -> None:
    config = random_config(1, moe=True)
    oracle = save_model(config, tmp_path)
    rank = start_rank(tmp_path)
    generator = torch.manual_seed(7)
    prompts = [
        torch.randint(config.vocab_size, (n,), generator=generator).tolist() for n in (3, 20)
    ]
    blocks = [[9, 3, 5], [1, 8, 2]]
    for slot, prompt in enumerate(prompts):
        drawn = rank.runner.launch(prefill_step(slot, slot, prompt, blocks[slot])).result()
        prompt.append(drawn.token_ids[0])
    for number in range(12):
        positions = [len(prompt) - 1 for prompt in prompts]
        drawn = rank.runner.launch(decode_step(number + 2, [0, 1], positions, [[], []])).result()
        for prompt, token in zip(prompts, drawn.token_ids, strict=True):
            prompt.append(token)
    for prompt, start in zip(prompts, (3, 20), strict=True):
        with torch.inference_mode():
            logits = oracle(torch.tensor([prompt])).logits[0]
        assert logits[start - 1 : -1].argmax(-1).tolist() == prompt[start:]
