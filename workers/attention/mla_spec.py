"""One layer's multi-head latent attention as numbers (DeepSeek-AI, 2024, DeepSeek-V2, section 2.1).

Torch-free, as `workers.attention.spec`: the launcher reads it before anything starts.
"""

from __future__ import annotations

import dataclasses
import math

from workers.attention.projection import Projection, Side, hidden_side
from workers.layers.rope_spec import RopeSpec, YarnScaling, yarn_mscale

_MAX_GROUP = 64
"""Query heads that one program attends with: their outputs over latents fill its registers."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueryGrowth:
    """A query at position p counts ``1 + beta · ln(1 + ⌊p / length⌋)`` times (transformers'
    get_llama_4_attn_scale in Mistral4Attention)."""

    beta: float
    length: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MlaSpec:
    """Attention whose keys and values are made of one latent a token; numbers are those of all
    ranks together. No projection has a bias: no checkpoint that is served has one.

    transformers' DeepseekV2Attention, DeepseekV3Attention (also Kimi-K2's), Glm4MoeLiteAttention
    and Mistral4Attention differ in these numbers alone.

    Attributes:
        q_lora_rank: width of the latent that queries are made of; None: they are made of the
            hidden state.
        kv_lora_rank: width of the latent that keys and values are made of.
        qk_nope_head_dim, qk_rope_head_dim: of a query's or key's two parts. The first knows no
            position, the second is turned, and is one for all heads of keys.
        v_head_dim: of values.
        scale: what scores are multiplied by, see `softmax_scale`.
        rope: turns all of the second part.
        norm_eps: of the norms of both latents; in transformers it is not config.json's.
        query_growth: None: queries of all positions count alike.
    """

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    scale: float
    rope: RopeSpec
    norm_eps: float = 1e-6
    query_growth: QueryGrowth | None = None

    def __post_init__(self) -> None:
        if self.rope.dim != self.qk_rope_head_dim:
            raise ValueError(
                f"qk_rope_head_dim {self.qk_rope_head_dim} is not the rotary embedding's "
                f"{self.rope.dim}"
            )
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim {self.qk_rope_head_dim} is odd; it must be pairs")

    @property
    def query_width(self) -> int:
        """Of a head's query, as it is projected."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def entry_width(self) -> int:
        """Of what the cache holds of a token: its latent, and the turned part of its keys."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def cache_heads(self) -> int:
        """One entry is all heads', and every rank's."""
        return 1

    @property
    def key_width(self) -> int:
        """Of an entry of the cache."""
        return self.entry_width

    @property
    def value_width(self) -> int:
        """Values are part of an entry's key."""
        return 0

    @property
    def window(self) -> None:
        """Every query sees all before it."""
        return None

    def window_within(self, max_positions: int) -> None:
        """As `window`."""
        return

    @property
    def pair_products(self) -> int:
        """Products that a query and a token make at least, over all heads: with keys and values."""
        return self.num_heads * (self.query_width + self.v_head_dim)

    def projections(self, hidden_size: int) -> list[Projection]:
        """All matrices of a layer."""
        hidden, heads = hidden_side(hidden_size), self.num_heads
        query = Side("num_attention_heads × qk_head_dim", heads * self.query_width, heads)
        latent = Side("kv_lora_rank", self.kv_lora_rank)
        pairs = heads * (self.qk_nope_head_dim + self.v_head_dim)
        found = [Projection("q_proj", query, hidden)]
        if self.q_lora_rank is not None:
            narrow = Side("q_lora_rank", self.q_lora_rank)
            found = [Projection("q_a_proj", narrow, hidden), Projection("q_b_proj", query, narrow)]
        return [
            *found,
            Projection(
                "kv_a_proj_with_mqa",
                Side("kv_lora_rank + qk_rope_head_dim", self.entry_width, may_cut=True),
                hidden,
            ),
            Projection(
                "kv_b_proj", Side("num_attention_heads × kv_head_dim", pairs, heads), latent
            ),
            Projection(
                "o_proj",
                hidden,
                Side("num_attention_heads × v_head_dim", heads * self.v_head_dim, heads),
            ),
        ]

    def check_heads(self, tp: int) -> None:
        """Raise ValueError unless heads divide over ``tp`` ranks."""
        if self.num_heads % tp:
            raise ValueError(f"--tp {tp} does not divide num_attention_heads {self.num_heads}")


def softmax_scale(query_width: int, rope: RopeSpec) -> float:
    """``1 / √query_width``, with YaRN's temperature where mscale_all_dim says so (transformers'
    yarn_apply_mscale)."""
    scale, scaling = 1.0 / math.sqrt(query_width), rope.scaling
    if isinstance(scaling, YarnScaling) and scaling.mscale_all_dim:
        scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale


def head_groups(num_heads: int) -> int:
    """Programs that share a rank's query heads evenly, each of which reads the latents.

    Plans of a step are made as if each had a key head of its own: it is
    `workers.step.batch.AttentionShape.kv_heads`.
    """
    groups = -(-num_heads // _MAX_GROUP)
    while num_heads % groups:
        groups += 1
    return groups
