"""Hunyuan-A13B: transformers' HunYuanMoEV1ForCausalLM.

Routed experts and the shared one are as wide as ``intermediate_size`` says. Keys of attention over
latents stand in published files and say nothing.
"""

from __future__ import annotations

from moe.names import MoENames
from workers.attention.spec import AttentionSpec
from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import COMMON_DEFAULTS, ModelType, MoEKeys, RopeOf, Values
from workers.families.grouped_query import grouped_query

_NAMES = MoENames(gate="gate.wg.weight", shared="shared_mlp")


def _attention(values: Values, layer: int, rope: RopeOf) -> AttentionSpec:
    routed, width = values["moe_intermediate_size"], values["intermediate_size"]
    if routed not in (None, width):
        raise ValueError(
            f"moe_intermediate_size is {routed}, intermediate_size {width}; experts of another "
            "width than the shared one are not built"
        )
    has_bias = values["attention_bias"]
    return grouped_query(
        values, rope, qk_norm="head_after_rotary", qkv_bias=has_bias, o_bias=has_bias
    )


TYPES = {
    "hunyuan_v1_moe": ModelType(
        architecture="HunYuanMoEV1ForCausalLM",
        models="Hunyuan-A13B",
        attention=_attention,
        defaults={
            **COMMON_DEFAULTS,
            "vocab_size": 290943,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
            "moe_intermediate_size": None,
            "num_experts": 1,
            "num_shared_expert": 1,
            "moe_topk": 1,
            "norm_topk_prob": True,
        },
        allowed={
            "num_shared_expert": (None, 1),
            "norm_topk_prob": (None, True),
            "use_mixed_mlp_moe": (None, True),
            "use_rotary_pos_emb": (None, True),
            "norm_type": (None, "rms"),
            "moe_layer_num_skipped": (None, 0),
            "use_cla": (None, False),
            "use_mla": (None, False),
            "group_limited_greedy": (None, False),
            "moe_router_enable_expert_bias": (None, False),
            "moe_router_use_sigmoid": (None, False),
            "position_embedding_xdrope": (None, False),
            "add_classification_head": (None, False),
        },
        one_a_layer=(
            "moe_intermediate_size", "num_experts", "num_local_experts", "num_shared_expert",
            "num_experts_per_tok", "moe_topk",
        ),
        without_effect=frozenset(
            {
                "attention_head_dim", "cla_share_factor", "class_num", "dense_list", "eod_token_id",
                "im_end_id", "im_newline_id", "im_start_id", "kv_lora_rank", "mask_init_id",
                "moe_drop_tokens", "moe_random_routing_dropped_token", "num_media_embeds",
                "org_vocab_size", "pad_id", "pool_type", "q_lora_rank", "qk_nope_head_dim",
                "qk_rope_head_dim", "text_end_id", "text_start_id", "v_head_dim", "video_end_id",
                "video_start_id",
            }
        ),
        moe=MoEKeys(
            intermediate_size="intermediate_size",
            num_experts_per_tok=("num_experts_per_tok", "moe_topk"),
            num_shared="num_shared_expert",
            fp32_gate=True,
            names=_NAMES,
        ),
        names=DecoderNames(q_norm="query_layernorm", k_norm="key_layernorm"),
    ),
}  # fmt: skip
