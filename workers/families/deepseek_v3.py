"""DeepSeek-V3 and Kimi-K2: transformers' DeepseekV3ForCausalLM; and the text of Kimi-K2.5:
Kimi_K25ForConditionalGeneration without images.
"""

from __future__ import annotations

import dataclasses

from workers.attention.mla_spec import MlaSpec
from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, RopeOf, Values
from workers.families.deepseek_mixtures import DEEPSEEK_MIXTURES, SIGMOID_ROUTER
from workers.families.latent import LATENT_DEFAULTS, latent


def _attention(values: Values, layer: int, rope: RopeOf) -> MlaSpec:
    return latent(values, rope, interleaved=values["rope_interleave"])


_DEEPSEEK_V3 = ModelType(
    architecture="DeepseekV3ForCausalLM",
    models="DeepSeek-V3, DeepSeek-R1, DeepSeek-V3.1",
    attention=_attention,
    defaults={
        **COMMON_DEFAULTS,
        **LATENT_DEFAULTS,
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "max_position_embeddings": 4096,
        "rope_interleave": True,
        "moe_intermediate_size": 2048,
        "topk_method": "noaux_tc",
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
        "num_nextn_predict_layers": 1,
    },
    allowed=SIGMOID_ROUTER,
    moe=DEEPSEEK_MIXTURES,
    extra_layers=("num_nextn_predict_layers",),
)

TYPES = {
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": dataclasses.replace(_DEEPSEEK_V3, models="Kimi-K2"),
    "kimi_k25": dataclasses.replace(
        _DEEPSEEK_V3,
        architecture="Kimi_K25ForConditionalGeneration",
        models="Kimi-K2.5, Kimi-K2.6 (text)",
        defaults={**_DEEPSEEK_V3.defaults, "tie_word_embeddings": True},
        names=DecoderNames(model="language_model.model", head="language_model.lm_head"),
        # transformers 5.24 takes the text's layers for those of the eyes when it saves them.
        aliases={"language_model.model.blocks.": "language_model.model.layers."},
        other_parts=("vision_tower.", "mm_projector.", "model.mm_projector."),
        text_key="text_config",
        text_types=(None, "deepseek_v3", "kimi_k2"),
    ),
}
