"""Grouped-query attention as most config.json files describe it."""

from __future__ import annotations

from workers.attention.spec import AttentionSpec, Gate, QkNorm
from workers.config_json.model_types import RopeOf, Values


def grouped_query(
    values: Values,
    rope: RopeOf,
    *,
    qk_norm: QkNorm = "none",
    window: int | None = None,
    qkv_bias: bool = False,
    o_bias: bool = False,
    clip_qkv: float | None = None,
    scale: float | None = None,
    gate: Gate = "none",
    layer_type: str | None = None,
) -> AttentionSpec:
    """From ``num_attention_heads``, ``num_key_value_heads`` (null: as many), ``head_dim`` (null or
    absent: hidden_size / heads); the rest as in `AttentionSpec`.

    Args:
        scale: None: one by the root of head_dim.
        layer_type: of which it has the rotary embedding, where types have their own.
    """
    heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
    head_dim = values.get("head_dim") or values["hidden_size"] // heads
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        scale=head_dim**-0.5 if scale is None else scale,
        rope=rope(head_dim, layer_type),
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        clip_qkv=clip_qkv,
        window=window,
        gate=gate,
    )
