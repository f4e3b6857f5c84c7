"""Mistral-Small-4: transformers' Mistral4ForCausalLM, by itself and as the text of
Mistral3ForConditionalGeneration without images.
"""

from __future__ import annotations

import dataclasses

from workers.attention.mla_spec import MlaSpec, QueryGrowth
from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, RopeOf, Values
from workers.config_json.rope_keys import RopeDefaults
from workers.families.deepseek_mixtures import DEEPSEEK_MIXTURES
from workers.families.latent import LATENT_DEFAULTS, latent_of

_GROWTH = "llama_4_scaling_beta"
_LENGTH = "original_max_position_embeddings"


def _attention(values: Values, layer: int, rope: RopeOf) -> MlaSpec:
    """What is turned is a share of whole heads here."""
    width = values["qk_rope_head_dim"]
    whole = values["qk_nope_head_dim"] + width
    turned = rope(whole, partial=width / whole)
    turned = dataclasses.replace(turned, interleaved=values["rope_interleave"])
    return latent_of(values, turned, _growth(rope))


def _growth(rope: RopeOf) -> QueryGrowth | None:
    """None without a beta, or with one of 0."""
    beta, length = rope.number(_GROWTH), rope.number(_LENGTH)
    if not beta:
        return None
    if length is None or length < 1 or length % 1:
        raise ValueError(
            f"{_GROWTH} is {beta:g} and {_LENGTH} {length}; queries grow every so many positions: "
            "say a whole number"
        )
    return QueryGrowth(beta=beta, length=int(length))


_MISTRAL4 = ModelType(
    architecture="Mistral4ForCausalLM",
    models="Mistral-Small-4",
    attention=_attention,
    defaults={
        **COMMON_DEFAULTS,
        **LATENT_DEFAULTS,
        "vocab_size": 131072,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_key_value_heads": 32,
        "max_position_embeddings": 1048576,
        "q_lora_rank": 1024,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "rope_interleave": True,
        "moe_intermediate_size": 2048,
        "moe_router_backend": "softmax_groups",
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 0,
    },
    allowed={"moe_router_backend": (None, "softmax_groups")},
    moe=dataclasses.replace(DEEPSEEK_MIXTURES, fp32_gate=False),
    rope=RopeDefaults(
        ignored=frozenset({_GROWTH, _LENGTH, "max_position_embeddings"}),
        absent={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 128.0,
            _LENGTH: 8192,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            _GROWTH: 0.1,
        },
    ),
)

TYPES = {
    "mistral4": _MISTRAL4,
    "mistral3": dataclasses.replace(
        _MISTRAL4,
        architecture="Mistral3ForConditionalGeneration",
        models="Mistral-Small-4 (text)",
        defaults={**_MISTRAL4.defaults, "tie_word_embeddings": True},
        names=DecoderNames(model="language_model.model", head="language_model.lm_head"),
        other_parts=("vision_tower.", "multi_modal_projector."),
        text_key="text_config",
        text_types=("mistral4",),
    ),
}
