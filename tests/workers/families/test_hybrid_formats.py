"""Weights of fewer bits of models whose layers keep states, made at load, against plain ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from moe.base.fp8_format import Fp8Format
from moe.base.parallel import resolve_parallel
from tests.workers.families.draw_parts import VOCAB
from tests.workers.families.draws import FAMILIES, save_family
from tests.workers.fp8_models import quantize_folder
from tests.workers.steps import prefill_step, relative_error, start_rank, step_logits
from workers.config_json.model_config import ModelConfig
from workers.scale_blocks import with_quantization

HYBRIDS = ["qwen3_next", "qwen3_5_moe"]
WIDE = {
    "hidden_size": 64, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}  # fmt: skip


@pytest.mark.parametrize("family", HYBRIDS)
@pytest.mark.parametrize("tp", [1, 2])
def test_real_ones_have_blocks_of_128(family: str, tp: int) -> None:
    config = ModelConfig.from_hf({"model_type": family, "text_config": {}})
    parallel = resolve_parallel(tp=tp, dp=1, ep=None, backend="auto", has_experts=True)
    made = with_quantization(config, "fp8", parallel, made_up=True).quantization
    assert made is not None
    assert made.weight_format == Fp8Format(block=(128, 128), stored="plain")


@pytest.mark.parametrize("tp", [1, 2])
def test_pieces_that_cut_a_block_have_smaller_ones(tp: int) -> None:
    """Of one key head's rows, which stand together in the checkpoint."""
    raw = {"model_type": "qwen3_next", "linear_key_head_dim": 64}
    parallel = resolve_parallel(tp=tp, dp=1, ep=None, backend="auto", has_experts=True)
    made = with_quantization(ModelConfig.from_hf(raw), "fp8", parallel, made_up=True).quantization
    assert made is not None
    assert made.weight_format == Fp8Format(block=(64, 64), stored="plain")


@pytest.mark.parametrize("form", ["hub", "saved", "packed"])
def test_logits_are_those_of_dequantized_weights(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))
    config = FAMILIES["qwen3_next"](random.Random("qwen3_next 1"))
    for key, value in WIDE.items():
        setattr(config, key, value)
    save_family(config, tmp_path)
    oracle = quantize_folder(tmp_path, block=(32, 32), form=form)
    rank = start_rank(tmp_path)
    tokens = torch.randint(VOCAB, (70,), generator=torch.manual_seed(0)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    ours = step_logits(rank, prefill_step(0, 2, tokens, list(range(5))))
    assert relative_error(ours, expected) < 1e-4
