"""The keys of config.json by what they do here: honored, without effect on the answers, refused,
or not known.

Owns the types and bounds of the values that are read, and the values of what is not built. Torch-
free. Knows no file, and not what the honored numbers are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from switchyard.model_files import shown
from workers.config_json.model_types import ModelType, Values

# Null is a value of its own: as many as query heads; hidden_size / heads; no window; no latent.
_NULLABLE = ("num_key_value_heads", "head_dim", "sliding_window", "q_lora_rank")

_LARGEST = 1 << 24
_LARGEST_OF = {
    "hidden_size": 1 << 18,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "max_position_embeddings": 1 << 27,
    "num_experts": 1 << 14,
    "num_local_experts": 1 << 14,
    "n_routed_experts": 1 << 14,
    "num_nextn_predict_layers": 1 << 10,
    "num_mtp_layers": 1 << 10,
    "num_mtp_modules": 1 << 10,
    "moe_num_experts": 1 << 14,
    "rms_norm_eps": 1,
}
"""Far above any model, and below what would take the machine's memory for tables and lists."""

_MAY_BE_ZERO = frozenset(
    {
        "num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts",
        "shared_expert_intermediate_size", "shared_intermediate_size",
        "first_k_dense_replace", "num_dense_layers", "n_group", "topk_group",
        "num_nextn_predict_layers", "num_mtp_layers", "num_mtp_modules", "sliding_window",
        "moe_num_experts", "moe_num_shared_experts", "moe_layer_start_index",
    }
)  # fmt: skip

# An index, of which -1 is the last.
_MAY_BE_LAST = frozenset({"moe_layer_end_index"})

# Whose default, none, does not say so.
_FLOATS = frozenset({"clip_qkv"})

_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
_ONE = (None, 1)
_ON = (None, True)

# What changes the mathematics and is not built unless a type's defaults name it, with the values
# that leave the mathematics as it is.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "attention_bias", "qkv_bias", "o_bias", "mlp_bias", "use_bias", "lm_head_bias",
            "clip_qkv", "attn_logit_softcapping", "final_logit_softcapping",
            "query_pre_attn_scalar", "attention_chunk_size", "dual_chunk_attention_config",
            "attn_output_gate", "q_lora_rank", "kv_lora_rank", "alibi", "use_alibi",
            "rope_interleave", "no_rope_layers", "no_rope_layer_interval",
            "per_layer_config", "pruned_heads", "is_encoder_decoder", "add_cross_attention",
            "num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts",
            "num_shared_experts", "shared_expert_intermediate_size", "first_k_dense_replace",
            "mlp_layer_types",
            "shared_intermediate_size", "rotary_dim",
        ),
        _OFF,
    ),
    **dict.fromkeys(
        (
            "partial_rotary_factor", "rotary_pct", "routed_scaling_factor", "moe_layer_freq",
            "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale",
            "attention_multiplier",
        ),
        _ONE,
    ),
    **dict.fromkeys(("n_group", "topk_group"), (None, 1, 0)),
    **dict.fromkeys(("use_qk_norm", "qk_norm", "qk_layernorm"), _ON),
    "scoring_func": (None, "softmax"),
    "topk_method": (None, "greedy"),
    "moe_router_backend": (None, "softmax"),
    "hidden_act": (None, "silu", "swish"),
}  # fmt: skip

# For training, for people, for other programs, or read from generation_config.json instead.
_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path", "architectures", "attention_dropout", "attn_implementation",
        "auto_map", "aux_loss_alpha", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
        "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_sparse_step",
        "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping",
        "encoder_no_repeat_ngram_size", "ep_size", "exponential_decay_length_penalty",
        "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "hidden_dropout",
        "id2label", "image_token_id", "initializer_range", "input_jitter_noise", "is_decoder",
        "label2id", "length_penalty", "max_length",
        "max_window_layers", "min_length", "mlp_only_layers", "model_type",
        "moe_intermediate_size", "mtp_layer_types", "mtp_mlp_layer_types",
        "no_repeat_ngram_size", "norm_topk_prob", "num_beam_groups",
        "num_beams", "num_experts_per_tok", "num_mtp_layers", "num_nextn_predict_layers",
        "num_return_sequences", "output_attentions", "output_hidden_states",
        "output_router_logits", "output_scores", "pad_token_id", "prefix", "pretraining_tp",
        "problem_type", "qk_head_dim", "remove_invalid_values", "repetition_penalty", "return_dict",
        "return_dict_in_generate", "router_aux_loss_coef", "router_jitter_noise", "sep_token_id",
        "seq_aux", "sliding_window", "suppress_tokens", "task_specific_params", "temperature",
        "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p",
        "torchscript", "transformers_version", "typical_p", "unsloth_fixed", "unsloth_version",
        "use_bfloat16", "use_cache", "video_token_id", "vision_config", "vision_end_token_id",
        "vision_start_token_id",
    }
)  # fmt: skip

# Of what images become, in models whose text is served.
_OF_IMAGES = frozenset(
    {
        "ignore_index", "image_token_index", "media_placeholder_token_id",
        "multimodal_projector_bias", "projection_hidden_size", "projection_layer_norm_eps",
        "projector_hidden_act", "spatial_merge_size", "use_unified_vision_chunk",
        "video_placeholder", "vision_feature_layer",
    }
)  # fmt: skip

# Of every type, in forms of their own: `ModelConfig` reads them.
_READ_ELSEWHERE = frozenset(
    {
        "dtype", "eos_token_id", "layer_types", "torch_dtype", "use_sliding_window",
        # By `workers.config_json.rope_keys`.
        "original_max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta",
        # By `workers.config_json.quantization`.
        "quantization_config", "compression_config",
    }
)  # fmt: skip

_KNOWN = _WITHOUT_EFFECT | _OF_IMAGES | _READ_ELSEWHERE


def read_keys(raw: Values, entry: ModelType) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values that a type honors, with its defaults, and the keys that nothing here knows.

    Raises:
        ValueError: one line naming a key whose value has the wrong type or size, or asks for what
            is not built.
    """
    moe = entry.moe
    experts = () if moe is None else (*moe.num_experts, *moe.num_experts_per_tok)
    numbers = ("head_dim", *experts, *entry.extra_layers)
    honored = {**dict.fromkeys(numbers, 0), **entry.defaults}
    harmless = {*entry.rope.keys, *entry.without_effect}
    known = honored.keys() | harmless
    open_keys = {key: said for key, said in NEUTRAL.items() if key not in known}
    neutral = {**open_keys, **entry.allowed}
    values, unknown = dict(entry.defaults), []
    for key, said in raw.items():
        value = _one(key, said, raw) if key in entry.one_a_layer else said
        if key in neutral and value not in neutral[key]:
            raise ValueError(
                f"{key} is {shown(value)}, which changes the mathematics and is not built for "
                f"{raw['model_type']}; serve a model in which it is {_words(neutral[key])}"
            )
        if key in honored:
            if value is not None and key not in entry.allowed:
                _check(key, value, honored[key])
            if value is not None or key in _NULLABLE:
                values[key] = value
        elif key not in neutral.keys() | harmless | _KNOWN:
            unknown.append(key)
    return values, tuple(unknown)


def _one(key: str, said: Any, raw: Values) -> Any:
    """The number that a list has for each layer."""
    if not isinstance(said, list):
        return said
    if not said or any(each != said[0] for each in said):
        raise ValueError(
            f"{key} is {shown(said)}; layers that differ in it are not built for "
            f"{raw['model_type']}: serve a model in which all are alike"
        )
    return said[0]


def _check(key: str, value: Any, default: Any) -> None:
    """Refuse a value that is not of its default's type, or out of bounds; a float may be whole."""
    if isinstance(default, bool | str):
        if type(value) is not type(default):
            kind = "a string" if isinstance(default, str) else "true or false"
            raise ValueError(f"{key} is {shown(value)}; it must be {kind}")
    elif isinstance(default, tuple):
        most = _LARGEST_OF["num_hidden_layers"]
        is_list = isinstance(value, list) and len(value) <= most
        if not is_list or any(type(each) is not str for each in value):
            raise ValueError(f"{key} is {shown(value)}; it must be a list of at most {most} names")
    elif isinstance(default, list):
        most = _LARGEST_OF["num_hidden_layers"]
        is_list = isinstance(value, list) and len(value) <= most
        if not is_list or any(type(each) is not int for each in value):
            raise ValueError(
                f"{key} is {shown(value)}; it must be a list of at most {most} whole numbers"
            )
    else:
        _check_number(key, value, is_float=isinstance(default, float) or key in _FLOATS)


def _check_number(key: str, value: Any, *, is_float: bool) -> None:
    kinds = (float, int) if is_float else (int,)
    least = -1 if key in _MAY_BE_LAST else 0 if is_float or key in _MAY_BE_ZERO else 1
    most = _LARGEST_OF.get(key, _LARGEST)
    # A bool is an int to isinstance, and no comparison holds for NaN.
    if type(value) not in kinds or not least <= value <= most:
        kind = "a number" if is_float else "a whole number"
        raise ValueError(f"{key} is {shown(value)}; it must be {kind} from {least} to {most}")


def _words(neutral: tuple[Any, ...]) -> str:
    return "absent" if neutral is _OFF else f"absent or {' or '.join(map(repr, neutral[1:]))}"
