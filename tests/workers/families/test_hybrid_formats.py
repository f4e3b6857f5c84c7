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
from tests.workers.fp8_kv_oracle import over_fp8_cache
from tests.workers.fp8_models import quantize_folder
from tests.workers.int4_models import quantize_folder as int4_folder
from tests.workers.models.test_int4_parity import FORMS
from tests.workers.steps import (
    decode_step,
    prefill_step,
    relative_error,
    start_rank,
    step_logits,
)
from workers.config_json.model_config import ModelConfig
from workers.rank.startup import LoadedRank
from workers.scale_blocks import with_quantization

HYBRIDS = ["qwen3_next", "qwen3_5_moe"]
WIDE = {
    "hidden_size": 64, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}  # fmt: skip
IN_PROJ_BA = tuple(f"model.layers.{layer}.linear_attn.in_proj_ba" for layer in range(8))


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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose widths are whole blocks and groups of 32, but for betas and decays."""
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))
    config = FAMILIES["qwen3_next"](random.Random("qwen3_next 1"))
    for key, value in WIDE.items():
        setattr(config, key, value)
    save_family(config, tmp_path)
    return tmp_path


def check(rank: LoadedRank, oracle: torch.nn.Module) -> None:
    """A prompt of two chunks, and a decode behind it."""
    tokens = torch.randint(VOCAB, (71,), generator=torch.manual_seed(0)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    prompt = prefill_step(0, 2, tokens[:70], list(range(5)), draw=False)
    parts = [step_logits(rank, prompt).clone()]
    rank.runner.builder.last_token[2] = tokens[70]
    parts.append(step_logits(rank, decode_step(1, [2], [70], [[]])))
    assert relative_error(torch.cat(parts), expected) <= 1e-4


@pytest.mark.parametrize("form", ["hub", "saved", "packed"])
def test_fp8_checkpoints(form: str, folder: Path) -> None:
    oracle = quantize_folder(folder, block=(32, 32), form=form)
    check(start_rank(folder), oracle)


@pytest.mark.parametrize("form", ["gptq", "awq", "packed asymmetric"])
def test_int4_checkpoints(form: str, folder: Path) -> None:
    """Betas and decays stay as they are, which every form says in its own way."""
    said = dict(FORMS[form])
    if form == "gptq":
        said["dynamic"] = {r"-:.*in_proj_ba": {}}
    elif form == "awq":
        said["modules_to_not_convert"] = ["in_proj_ba"]
    else:
        said["ignore"] = ["lm_head", "re:.*in_proj_ba"]
    oracle = int4_folder(folder, said, skipped=IN_PROJ_BA)
    check(start_rank(folder), oracle)


def test_a_cache_of_eight_bits(folder: Path) -> None:
    """Of the layers that have keys; states stay fp32."""
    oracle = over_fp8_cache(quantize_folder(folder, block=(32, 32)))
    rank = start_rank(folder, kv_cache_dtype="fp8_e4m3")
    check(rank, oracle)
    cache = rank.runner.forward.cache
    assert {each.keys.dtype.itemsize for each in cache.layers} == {1}
    assert {each.recurrent.dtype for each in cache.states} == {torch.float32}
