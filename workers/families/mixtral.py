"""Mixtral: transformers' MixtralForCausalLM."""

from __future__ import annotations

from moe.names import MoENames
from workers.attention.spec import AttentionSpec
from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.config_json.rope_keys import RopeDefaults
from workers.families.grouped_query import grouped_query

MIXTRAL_NAMES = MoENames(matrices=("w1", "w3", "w2"))


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    """A window is that of all layers."""
    return grouped_query(values, rope, window=values["sliding_window"])


TYPES = {
    "mixtral": ModelType(
        architecture="MixtralForCausalLM",
        models="Mixtral-8x7B, Mixtral-8x22B",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
            "norm_topk_prob": True,
        },
        allowed={"norm_topk_prob": (None, True)},
        moe=MoEKeys(intermediate_size="intermediate_size", names=MIXTRAL_NAMES),
        rope=RopeDefaults(theta=1e6),
        names=DecoderNames(mlp="block_sparse_moe"),
    ),
}
