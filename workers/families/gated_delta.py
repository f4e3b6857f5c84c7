"""Layers of Qwen3-Next and of what came after it: three with a state to one that attends."""

from __future__ import annotations

import dataclasses

from switchyard.model_files import shown
from workers.attention.any import AnyAttention
from workers.config_json.model_types import RopeOf, Values
from workers.families.grouped_query import grouped_query
from workers.linear_attention.spec import DeltaSpec

DELTA_DEFAULTS: Values = {
    "layer_types": (),
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}

_TYPES = ("full_attention", "linear_attention")


def hybrid_attention(
    values: Values, layer: int, rope: RopeOf, *, by_key_head: bool
) -> AnyAttention:
    """That of a layer, as ``layer_types`` says, or else ``full_attention_interval``."""
    if _type(values, layer) == "linear_attention":
        return DeltaSpec(
            num_key_heads=values["linear_num_key_heads"],
            num_value_heads=values["linear_num_value_heads"],
            key_width=values["linear_key_head_dim"],
            value_width=values["linear_value_head_dim"],
            taps=values["linear_conv_kernel_dim"],
            by_key_head=by_key_head,
        )
    spec = grouped_query(values, rope, qk_norm="head", gate="element")
    return dataclasses.replace(spec, gate_activation="sigmoid", gate_in_query=True)


def _type(values: Values, layer: int) -> str:
    types, num_layers = values["layer_types"], values["num_hidden_layers"]
    if not types:
        return _TYPES[bool((layer + 1) % values["full_attention_interval"])]
    if len(types) != num_layers or types[layer] not in _TYPES:
        raise ValueError(
            f"layer_types is {shown(list(types))}; it must be {' or '.join(_TYPES)}, once for each "
            f"of num_hidden_layers {num_layers}: no other kind is built"
        )
    return str(types[layer])
