"""Models with images whose text is one of the latent families: logits, and names on the Hub."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Mistral3Config
from transformers.models.kimi_k25 import Kimi_K25Config

from tests.refusals import refusal
from tests.workers.families.draw_parts import VOCAB
from tests.workers.families.draws import FAMILIES, save_family
from tests.workers.steps import prefill_step, relative_error, start_rank, step_logits
from workers.config_json.model_config import ModelConfig

EYES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


def mistral3(text: Any, *, tied: bool) -> Mistral3Config:
    eyes = EYES | {"model_type": "pixtral", "head_dim": 8, "image_size": 16, "patch_size": 8}
    return Mistral3Config(text_config=text, vision_config=eyes, tie_word_embeddings=tied)


def kimi_k25(text: Any, *, tied: bool) -> Kimi_K25Config:
    return Kimi_K25Config(
        text_config=text, vision_config=EYES, tie_word_embeddings=tied, projection_hidden_size=16
    )


WHOLE = {"mistral3": ("mistral4", mistral3), "kimi_k25": ("deepseek_v3", kimi_k25)}


def as_on_the_hub(folder: Path) -> None:
    """transformers 5.24 saves layers of Kimi-K2.5 by another name."""
    path = folder / "model.safetensors"
    tensors = {
        name.replace("language_model.model.blocks.", "language_model.model.layers."): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("as_saved", [True, False])
@pytest.mark.parametrize("model_type", WHOLE)
def test_logits_equal_transformers(
    model_type: str, as_saved: bool, tied: bool, tmp_path: Path
) -> None:
    family, make = WHOLE[model_type]
    text = FAMILIES[family](random.Random(f"{family} 1"))
    text.tie_word_embeddings = tied
    oracle = save_family(make(text, tied=tied), tmp_path)
    if not as_saved:
        as_on_the_hub(tmp_path)
    rank = start_rank(tmp_path)
    assert rank.model_config.unknown_keys == ()
    tokens = torch.randint(VOCAB, (25,), generator=torch.manual_seed(0)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    ours = step_logits(rank, prefill_step(0, 2, tokens, [9, 3]))
    assert relative_error(ours, expected) <= 1e-4


def test_another_text_is_refused() -> None:
    raw = {"model_type": "mistral3", "text_config": {"model_type": "mistral"}}
    line = "text_config.model_type is 'mistral'; with model_type 'mistral3' only mistral4 is built"
    assert line in refusal(lambda: ModelConfig.from_hf(raw))


def test_kimi_k25_says_its_weights_inside(tmp_path: Path) -> None:
    """Its text model's object has the key of formats."""
    said = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
                    "group_size": 32,
                },
            }
        },
    }  # fmt: skip
    raw = {"model_type": "kimi_k25", "text_config": {"quantization_config": said}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = ModelConfig.from_folder(tmp_path)
    assert config.reads_int4
    assert config.quantization is not None
    prefix = "language_model.model.layers.1"
    assert f"{prefix}.self_attn.kv_b_proj" in config.quantization.skipped
    assert f"{prefix}.mlp.experts.0.up_proj" not in config.quantization.skipped
