"""One gated delta layer as numbers (Yang et al., Gated Delta Networks, 2024).

Torch-free, as `workers.attention.spec`: the launcher reads it before anything starts.
"""

from __future__ import annotations

import dataclasses

from workers.attention.projection import Projection, Side, hidden_side


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeltaSpec:
    """A layer that keeps a state of one size in place of keys and values; numbers are those of all
    ranks together.

    transformers' Qwen3NextGatedDeltaNet and Qwen3_5MoeGatedDeltaNet differ in how a checkpoint
    holds the projections alone.

    Attributes:
        num_key_heads: of queries and keys; each serves as many value heads, neighbours.
        key_width, value_width: of a head.
        taps: inputs that the convolution before queries, keys and values sees, a token's own
            included.
        by_key_head: the rows of a checkpoint's projections stand by key head, those of queries,
            keys, values and gates of each together.
    """

    num_key_heads: int
    num_value_heads: int
    key_width: int
    value_width: int
    taps: int
    by_key_head: bool

    def __post_init__(self) -> None:
        if self.num_value_heads % self.num_key_heads:
            raise ValueError(
                f"linear_num_value_heads {self.num_value_heads} is not a multiple of "
                f"linear_num_key_heads {self.num_key_heads}"
            )
        if self.taps < 2:
            raise ValueError(f"linear_conv_kernel_dim {self.taps}: at least 2 are built")

    @property
    def keys_size(self) -> int:
        """Of all heads' keys."""
        return self.num_key_heads * self.key_width

    @property
    def values_size(self) -> int:
        """Of all heads' values."""
        return self.num_value_heads * self.value_width

    def state_bytes(self, value_bytes: int) -> int:
        """Of one sequence's state; the convolution's inputs have ``value_bytes`` each."""
        recurrent = 4 * self.num_value_heads * self.key_width * self.value_width
        return recurrent + value_bytes * self.taps * (2 * self.keys_size + self.values_size)

    @property
    def token_flops(self) -> int:
        """Operations of a token on its state: what it says of the key, the new value, the query."""
        return 6 * self.num_value_heads * self.key_width * self.value_width

    def projections(self, hidden_size: int) -> list[Projection]:
        """All matrices of a layer; those of betas and decays are too small for scales."""
        hidden, heads = hidden_side(hidden_size), self.num_key_heads
        names = "linear_num_key_heads × linear_key_head_dim"
        values = Side("linear_num_value_heads × linear_value_head_dim", self.values_size, heads)
        if self.by_key_head:
            size = 2 * self.keys_size + 2 * self.values_size
            group = self.num_value_heads // self.num_key_heads * self.value_width
            pieces = (self.key_width, group)
            rows = Side(names, size, heads, pieces=pieces)
            found = [Projection("in_proj_qkvz", rows, hidden)]
        else:
            size = 2 * self.keys_size + self.values_size
            found = [
                Projection(
                    "in_proj_qkv",
                    Side(names, size, heads, pieces=(self.keys_size, self.values_size)),
                    hidden,
                ),
                Projection("in_proj_z", values, hidden),
            ]
        return [*found, Projection("out_proj", hidden, values)]

    def check_heads(self, tp: int) -> None:
        """Raise ValueError unless heads divide over ``tp`` ranks."""
        if self.num_key_heads % tp:
            raise ValueError(f"--tp {tp} does not divide linear_num_key_heads {self.num_key_heads}")
