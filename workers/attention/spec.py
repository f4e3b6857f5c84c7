"""One layer's attention as numbers. Torch-free: the launcher reads them before anything starts."""

from __future__ import annotations

import dataclasses
from typing import Literal

from workers.attention.projection import Projection, Side, hidden_side
from workers.layers.rope_spec import RopeSpec

QkNorm = Literal["none", "head", "head_after_rotary", "all_heads"]
Gate = Literal["none", "head", "element"]
GateActivation = Literal["softplus", "sigmoid"]


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
        gate: what attention found is weighed before the output projection, by head or by number, by
            the ``gate_activation`` of a projection of the layer's input, ``gate_name``.
        gate_in_query: that projection is in q_proj's tensor, each head's rows behind its query's.
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
    gate_activation: GateActivation = "softplus"
    gate_name: str = "g_proj"
    gate_in_query: bool = False

    def __post_init__(self) -> None:
        if self.window == 0:
            raise ValueError("sliding_window is 0, so that no query sees a key; say its width")

    def window_within(self, max_positions: int) -> int | None:
        """The window, if sequences of that many positions at most meet it."""
        return self.window if self.window is not None and self.window < max_positions else None

    @property
    def query_rows(self) -> int:
        """Of a head in q_proj's tensor."""
        return self.head_dim + (self.v_head_dim if self.gate_in_query else 0)

    @property
    def cache_heads(self) -> int:
        """Heads of an entry of the cache; ranks beyond as many hold the same ones."""
        return self.num_kv_heads

    @property
    def key_width(self) -> int:
        """Of a head's key in the cache."""
        return self.head_dim

    @property
    def value_width(self) -> int:
        """Of a head's value in the cache."""
        return self.v_head_dim

    @property
    def pair_products(self) -> int:
        """Products that a query and a key make, over all heads."""
        return self.num_heads * (self.head_dim + self.v_head_dim)

    def projections(self, hidden_size: int) -> list[Projection]:
        """All matrices of a layer."""
        hidden = hidden_side(hidden_size)
        query, key = "num_attention_heads × head_dim", "num_key_value_heads × head_dim"
        heads, kv_heads = self.num_heads, self.num_kv_heads
        found = [
            Projection("q_proj", self._query_side(query), hidden),
            Projection("k_proj", Side(key, kv_heads * self.head_dim, kv_heads), hidden),
            Projection("v_proj", Side(key, kv_heads * self.v_head_dim, kv_heads), hidden),
            Projection("o_proj", hidden, Side(query, heads * self.v_head_dim, heads)),
        ]
        if self.gate != "none" and not self.gate_in_query:
            width = heads if self.gate == "head" else heads * self.v_head_dim
            found.append(Projection(self.gate_name, Side(query, width, heads), hidden))
        return found

    def _query_side(self, name: str) -> Side:
        pieces = (self.head_dim, self.v_head_dim) if self.gate_in_query else ()
        return Side(name, self.num_heads * self.query_rows, self.num_heads, pieces=pieces)

    def check_heads(self, tp: int) -> None:
        """Raise ValueError unless heads divide over ``tp`` ranks."""
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        if self.num_heads % tp:
            raise ValueError(f"--tp {tp} does not divide num_attention_heads {self.num_heads}")
        if self.num_kv_heads % tp and tp % self.num_kv_heads:
            raise ValueError(
                f"--tp {tp} neither divides num_key_value_heads {self.num_kv_heads} "
                "nor is a multiple of it"
            )
