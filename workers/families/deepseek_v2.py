"""DeepSeek-V2: transformers' DeepseekV2ForCausalLM.

``norm_topk_prob`` does nothing there, nor here.
"""

from __future__ import annotations

from workers.attention.mla_spec import MlaSpec
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, RopeOf, Values
from workers.families.deepseek_mixtures import DEEPSEEK_MIXTURES
from workers.families.latent import LATENT_DEFAULTS, latent


def _attention(values: Values, layer: int, rope: RopeOf) -> MlaSpec:
    """Its pairs are always neighbours."""
    return latent(values, rope, interleaved=True)


TYPES = {
    "deepseek_v2": ModelType(
        architecture="DeepseekV2ForCausalLM",
        models="DeepSeek-V2, DeepSeek-V2-Lite, DeepSeek-Coder-V2, DeepSeek-V2.5",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            **LATENT_DEFAULTS,
            "vocab_size": 102400,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "max_position_embeddings": 2048,
            "moe_intermediate_size": 1407,
            "topk_method": "greedy",
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,  # transformers has none, and no model without it
            "n_group": 0,
            "topk_group": 0,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 0,
        },
        allowed={
            "topk_method": (None, "greedy", "group_limited_greedy"),
            "rope_interleave": (None, True),
        },
        moe=DEEPSEEK_MIXTURES,
    ),
}
