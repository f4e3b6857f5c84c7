"""The recipe learns, ends on time, and what it writes can be scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from demo import train
from demo.model import Shape
from demo.train import Recipe

TINY = Shape(
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    num_experts=4,
    experts_per_token=2,
    expert_size=16,
)


def test_schedule_warms_up_and_decays_by_steps_or_time() -> None:
    recipe = Recipe(steps=1000, minutes=10, warmup_steps=100, learning_rate=1.0)
    assert train.learning_rate(recipe, 0, 0.0) == pytest.approx(0.01)
    assert train.learning_rate(recipe, 500, 1.0) == pytest.approx(0.5)
    assert train.learning_rate(recipe, 500, 10.0) == pytest.approx(0.0)
    assert train.learning_rate(recipe, 1000, 1.0) == pytest.approx(0.0)


@pytest.mark.processes
def test_a_run_learns_and_records_itself(tmp_path: Path) -> None:
    recipe = Recipe(
        steps=60, rows_per_step=4, num_rows=64, warmup_steps=5, learning_rate=1e-2, log_every=20
    )
    train.run(recipe, TINY, tmp_path, torch.device("cpu"), count=1)
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    record = json.loads((tmp_path / "training.json").read_text())
    assert [step for step, _ in record["losses"]] == [20, 40, 60]
    assert record["losses"][-1][1] < record["losses"][0][1] - 0.5
    assert record["loss"] == record["losses"][-1][1]
    assert set(record["accuracy"]) > {"all", "addition", "reverse"}
    assert [sum(layer) for layer in record["expert_shares"]] == [pytest.approx(1, abs=1e-3)]


def test_a_corpus_smaller_than_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="num_rows 8 is less than rows_per_step 64"):
        Recipe(num_rows=8)
