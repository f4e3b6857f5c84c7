"""One layer's attention as numbers. Torch-free: the launcher reads them before anything starts."""

from __future__ import annotations

import dataclasses
from typing import Literal

from workers.layers.rope_spec import RopeSpec

QkNorm = Literal["none", "head", "head_after_rotary", "all_heads"]
Gate = Literal["none", "head", "element"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Grouped-query attention; numbers are those of all ranks together.

    Attributes:
        head_dim: of queries and keys; v_head_dim: of values.
        scale: what scores are multiplied by.
        rope: None: queries and keys know no position.
        qk_norm: RMSNorm of each head of q and k, before or after they are turned, or one norm over
            all heads of q and one over all of k.
        clip_qkv: bounds q and k, once they are normed, and v on both sides; None: no bound.
        window: keys that a query sees, its own included; None: all before it.
        sinks: each query head has a learned score of no key, which takes its share of the weights.
        gate: what attention found is weighed before the output projection, by head or by number.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    rope: RopeSpec | None
    qk_norm: QkNorm = "none"
    qkv_bias: bool = False
    o_bias: bool = False
    clip_qkv: float | None = None
    window: int | None = None
    sinks: bool = False
    gate: Gate = "none"
