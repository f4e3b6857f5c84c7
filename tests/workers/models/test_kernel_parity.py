"""The worker's models run by interpreted kernels: logits against transformers, draws and padding
against plain torch, in fp32."""

from pathlib import Path

import pytest
import torch

from switchyard.worker.v1 import worker_pb2
from tests.workers.steps import (
    decode_step,
    interpreted,
    prefill_step,
    relative_error,
    start_rank,
    step_logits,
)
from tests.workers.tiny_models import random_config, save_model
from workers.rank.startup import LoadedRank
from workers.step.batch import BatchShape

pytestmark = pytest.mark.interpreter

CHUNKS = [(0, 1), (1, 5), (5, 11)]
# Two layers each; three or four experts a token (more than one way of experts' kernels), whose
# weights are renormalised by 55.
MODELS = [(35, True), (55, True), (1, False)]


@pytest.fixture(autouse=True)
def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, it would take as long as all else here."""
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))


@pytest.mark.parametrize(("seed", "moe"), MODELS)
def test_logits_equal_transformers(seed: int, moe: bool, tmp_path: Path) -> None:
    """A prompt in chunks, then a decode."""
    config = random_config(seed, moe=moe)
    oracle = save_model(config, tmp_path, seed)
    rank = start_rank(tmp_path, interpreted(), block_size=(16, 4, 5)[seed % 3])
    tokens = torch.randint(config.vocab_size, (12,), generator=torch.manual_seed(seed)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    blocks = torch.randperm(20, generator=torch.manual_seed(seed)).tolist()
    steps = [
        prefill_step(number, 5, tokens[a:b], blocks if number == 0 else [], position=a, draw=False)
        for number, (a, b) in enumerate(CHUNKS)
    ]
    parts = [step_logits(rank, step).clone() for step in steps]
    rank.runner.builder.last_token[5] = tokens[11]
    parts.append(step_logits(rank, decode_step(3, [5], [11], [[]])))
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
            prompt = torch.randint(config.vocab_size, (1 + 4 * slot,), generator=generator)
            step = prefill_step(slot, slot, prompt.tolist(), [9 + 4 * slot, 3 * slot], **asked)
            tokens.append(list(rank.runner.launch(step).result().token_ids))
        for number in range(2):
            positions = [1 + 4 * slot + number for slot in range(4)]
            step = decode_step(4 + number, [0, 1, 2, 3], positions, [[]] * 4)
            tokens.append(list(rank.runner.launch(step).result().token_ids))
        drawn.append(tokens)
    assert drawn[0] == drawn[1]


def started_pair(folder: Path, context: object) -> LoadedRank:
    """A rank whose slots 0 and 2 hold prompts."""
    rank = start_rank(folder, context, block_size=4)  # type: ignore[arg-type]
    for slot, size in ((0, 3), (2, 6)):
        blocks = [20 + 4 * slot, 21 + 4 * slot]
        rank.runner.launch(prefill_step(slot, slot, [5, 9, 2, 4, 8, 1][:size], blocks)).result()
    return rank


def mixed_step() -> worker_pb2.StepRequest:
    """Two decodes, and a prompt that begins."""
    step = decode_step(9, [2, 0], [6, 3], [[], []])
    step.decode_only = False
    other = prefill_step(9, 1, [7, 3, 3, 1, 6], [2, 1], temperature=0.7, seed=5)
    step.max_replica_tokens = 7
    step.new_sequences.extend(other.new_sequences)
    for name in ("slots", "positions", "num_tokens", "token_ids", "draws"):
        getattr(step, name).extend(getattr(other, name))
    step.num_new_blocks.extend(other.num_new_blocks)
    step.new_blocks.extend(other.new_blocks)
    return step


@pytest.mark.parametrize("decodes", [True, False])
@torch.inference_mode()
def test_padding_changes_nothing(decodes: bool, tmp_path: Path) -> None:
    """A step as a graph holds it, of the next size, against the same on its own."""
    save_model(random_config(55, moe=True), tmp_path)
    step = decode_step(9, [2, 0], [6, 3], [[], []]) if decodes else mixed_step()
    num_tokens = step.max_replica_tokens
    alone = step_logits(started_pair(tmp_path, None), step)
    rank = started_pair(tmp_path, interpreted())
    runner = rank.runner
    before = [(layer.keys.clone(), layer.values.clone()) for layer in runner.forward.cache.layers]
    batch = runner.builder.build(step, BatchShape(num_tokens + 3, decodes=decodes))
    assert len(batch.forward.ids_T) == num_tokens + 3
    padded = runner.forward(batch)
    padded = padded if decodes else rank.model.logits(padded)
    assert relative_error(padded[:num_tokens], alone) <= 1e-4
    # Padding writes to no block.
    for layer, (keys, values) in zip(runner.forward.cache.layers, before, strict=True):
        changed = (layer.keys != keys) | (layer.values != values)
        assert changed.flatten(2).any(2).sum() == num_tokens
