"""Qwen3.5 and Qwen3.6 mixtures: transformers' Qwen3_5MoeForConditionalGeneration, of which the text
is served, and Qwen3_5MoeForCausalLM."""

from __future__ import annotations

import dataclasses
import functools

from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys
from workers.config_json.rope_keys import RopeDefaults
from workers.families.gated_delta import DELTA_DEFAULTS, hybrid_attention

_TEXT = ModelType(
    architecture="Qwen3_5MoeForCausalLM",
    models="Qwen3.5-35B-A3B's text alone",
    attention=functools.partial(hybrid_attention, by_key_head=False),
    defaults={
        **COMMON_DEFAULTS,
        **DELTA_DEFAULTS,
        "vocab_size": 248320,
        "hidden_size": 2048,
        "intermediate_size": 512,  # of no layer
        "num_hidden_layers": 40,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "attention_bias": False,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts_per_tok": 8,
        "num_experts": 256,
        "norm_topk_prob": True,
    },
    allowed={
        "attention_bias": (None, False),
        "attn_output_gate": (None, True),
        "norm_topk_prob": (None, True),
    },
    # Layers for speculation are left out; states are fp32 always.
    without_effect=frozenset(
        {"mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"}
    ),
    moe=MoEKeys(shared_size="shared_expert_intermediate_size", shared_gated=True),
    # Positions of text are the same in all sections of a head.
    rope=RopeDefaults(partial=0.25, ignored=frozenset({"mrope_section", "mrope_interleaved"})),
    norm="rms_of_one",
    other_parts=("mtp.",),
)

TYPES = {
    "qwen3_5_moe": dataclasses.replace(
        _TEXT,
        architecture="Qwen3_5MoeForConditionalGeneration",
        models="Qwen3.5-35B-A3B, Qwen3.6-35B-A3B (text)",
        names=DecoderNames(model="model.language_model"),
        other_parts=("model.visual.", "mtp."),
        text_key="text_config",
    ),
    "qwen3_5_moe_text": _TEXT,
}
