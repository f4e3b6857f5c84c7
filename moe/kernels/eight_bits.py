"""Which kernels multiply experts' weights of eight bits with activations of eight bits.

Owns the choice: `narrow_fp8` for few rows, `wide_fp8` for many, `moe.base.specialized_fp8` for many
of each expert. Knows neither buffers nor the order of launches. T tokens, K experts per token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from moe.base.context import KernelContext
from moe.base.promoted_dot import specializes
from moe.base.quantized import GROUP
from moe.base.specialized_fp8 import (
    SPECIALIZED_ROWS,
    specialized_down,
    specialized_gate_up,
)
from moe.base.tiles import MANY_ROWS, ExpertTiles
from moe.base.weight import Weight
from moe.kernels.narrow_fp8 import down_narrow, experts_narrow_fit, gate_up_narrow
from moe.kernels.wide_fp8 import down_fp8, experts_fit, gate_up_fp8

# Rows an expert from which `specialized_fp8` is faster: with 64 just so, or by a tenth where half
# the experts have them all, with 256 by a third.
_SPECIALIZED_MEAN = 64


class EightBitGemms(NamedTuple):
    """Both GEMMs of a step's experts.

    Attributes:
        block_m: rows of a tile.
        group: columns under one scale of what is between them.
        gate_up: of rows, weights, an `Alignment`, K and ``out_PI``.
        down: of rows, weights, an `Alignment` and ``out_PH``.
    """

    block_m: int
    group: int
    gate_up: Callable[..., None]
    down: Callable[..., None]


def tiles_of(num_tokens: int, K: int, w2: Weight, context: KernelContext) -> ExpertTiles:
    """Those of a step."""
    E, H, width = w2.shape
    return context.tiles.experts(E, width, H, num_tokens, num_tokens * K, weights=w2.kind)


def eight_bit_gemms(
    num_tokens: int,
    K: int,
    w13: Weight,
    w2: Weight,
    expert_map_E: torch.Tensor | None,
    context: KernelContext,
) -> EightBitGemms | None:
    """None: activations stay as they are, for matrix-vector products or weights that none of these
    kernels takes."""
    tiles, pdl = tiles_of(num_tokens, K, w2, context), context.pdl
    if context.tiles.item_size != 2 or tiles.gate_up.block_m == 1:
        return None
    num_experts = w2.shape[0] if expert_map_E is None else len(expert_map_E)
    many = num_tokens >= MANY_ROWS
    if (
        many
        and context.specialized
        and num_tokens * K >= _SPECIALIZED_MEAN * num_experts
        and specializes(w13, w13.shape[1])
        and specializes(w2, w2.shape[1])
    ):
        return EightBitGemms(
            SPECIALIZED_ROWS,
            GROUP,
            functools.partial(specialized_gate_up, pdl=pdl),
            functools.partial(specialized_down, pdl=pdl),
        )
    if experts_narrow_fit(tiles, w13, w2):
        gate_up, down = gate_up_narrow, down_narrow
    elif many and experts_fit(tiles, w13, w2):
        gate_up, down = gate_up_fp8, down_fp8
    else:
        return None
    return EightBitGemms(
        tiles.gate_up.block_m,
        tiles.gate_up.block_n,
        functools.partial(gate_up, tiles=tiles.gate_up, pdl=pdl),
        functools.partial(down, tiles=tiles.down, pdl=pdl),
    )
