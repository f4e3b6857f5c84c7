"""DeepSeek-V3 as it is published: weights in blocks of eight bits, and a layer for speculation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config

from tests.workers.families.draws import save_family
from tests.workers.fp8_models import quantize_folder
from tests.workers.steps import prefill_step, relative_error, start_rank, step_logits

LAYERS = 2


def config() -> DeepseekV3Config:
    """All matrices have sides that are multiples of 32."""
    return DeepseekV3Config(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=2, q_lora_rank=32, kv_lora_rank=32,
        qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32, moe_intermediate_size=32,
        n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2,
        first_k_dense_replace=1, initializer_range=0.2, max_position_embeddings=64,
    )  # fmt: skip


def add_speculation(folder: Path) -> None:
    """A layer behind the last, some of whose tensors no other layer has."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    last, extra = f"model.layers.{LAYERS - 1}.", f"model.layers.{LAYERS}."
    more = {
        name.replace(last, extra): value.clone()
        for name, value in tensors.items()
        if name.startswith(last)
    }
    more[f"{extra}eh_proj.weight"] = torch.zeros(64, 128)
    more[f"{extra}shared_head.head.weight"] = torch.zeros(97, 64)
    save_file(tensors | more, path, metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize("form", ["hub", "saved"])
def test_published_folders_load(form: str, tmp_path: Path) -> None:
    save_family(config(), tmp_path)
    oracle = quantize_folder(tmp_path, block=(32, 32), form=form)
    held = load_file(tmp_path / "model.safetensors")
    for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"):
        weight = held[f"model.layers.0.self_attn.{name}.weight"]
        assert weight.dtype == torch.float8_e4m3fn, name
    add_speculation(tmp_path)
    rank = start_rank(tmp_path)
    assert rank.model_config.unknown_keys == ()
    tokens = torch.randint(97, (25,), generator=torch.manual_seed(0)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    ours = step_logits(rank, prefill_step(0, 2, tokens, [9, 3]))
    assert relative_error(ours, expected) <= 1e-4
