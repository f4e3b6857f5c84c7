"""Products of eight-bit activations and weights: one step of a GEMM, and which tiles may take it.

Owns a device function, the choice of tiles, and what `specialized_fp8` multiplies. A step is a dot
of its own, whose fp32 sums are multiplied by the scales of its rows and of its block of weights
before they are added up: tensor cores keep fewer bits of sums of FP8 than fp32 has. N outputs, K
inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moe.base.quantized import GROUP
from moe.base.tiles import FP8_NAME, Tiles
from moe.base.weight import Weight

_MIN_ROWS = 64  # of a tile's wide side: one wgmma
_MIN_DEPTH = 32
_MAX_COLUMNS = 128  # of one dot; a tile has one or two
_TMA_BYTES = 16  # strides and addresses of a descriptor are multiples
_SPECIALIZED_BLOCK = (128, 128)


@triton.jit
def add_promoted_dot(total, x, w, row_scales_M, weight_scale):
    """total + x·wᵀ, times the scales: one a row and one for all weights."""
    return total + tl.dot(x, w.T) * (row_scales_M * weight_scale)[:, None]


def dot_columns(tiles: Tiles) -> int:
    """Columns of one dot."""
    return min(tiles.block_n, _MAX_COLUMNS)


def step_depth(tiles: Tiles, weight: Weight, group: int) -> int:
    """Inputs of one step, which have one scale a row and one a block of weights."""
    assert weight.block is not None
    depth = min(tiles.block_k, group)
    return depth if weight.block[0] == 1 else min(depth, weight.block[1])


def fits(tiles: Tiles, weight: Weight, group: int = GROUP) -> bool:
    """Whether a launch with these tiles may multiply activations of eight bits with a weight."""
    if weight.kind != FP8_NAME or tiles.block_m < _MIN_ROWS or tiles.swap or tiles.splits > 1:
        return False
    assert weight.block is not None
    columns, depth, inputs = dot_columns(tiles), step_depth(tiles, weight, group), weight.shape[-1]
    bn, bk = weight.block
    return (
        tiles.block_n in (columns, 2 * columns)
        and (bn == 1 or (bn % columns == 0 and bk % depth == 0))
        and depth >= _MIN_DEPTH
        and inputs % group == 0
        and group % depth == 0
        and inputs % _TMA_BYTES == 0
        and weight.values.data_ptr() % _TMA_BYTES == 0
    )


def narrow_fits(tiles: Tiles, weight: Weight, group: int = GROUP) -> bool:
    """Whether a launch may multiply few rows of eight bits, in such groups, with a weight that
    fills the wide side of the tensor core."""
    if weight.kind != FP8_NAME or not tiles.swap or tiles.block_n < _MIN_ROWS:
        return False
    assert weight.block is not None
    (bn, bk), depth = weight.block, step_depth(tiles, weight, group)
    outputs, inputs = weight.shape[-2:]
    return (
        depth >= _MIN_DEPTH
        and outputs % tiles.block_n == 0
        and inputs % group == 0
        and group % depth == 0
        and (bn == 1 or (bn % tiles.block_n == 0 and bk % depth == 0))
    )


def specializes(weight: Weight, num_outputs: int, group: int = GROUP) -> bool:
    """Whether `specialized_fp8` may multiply activations of eight bits, a group of so many inputs
    under one scale, with matrices [..., N, K] of so many outputs."""
    inputs = weight.shape[-1]
    return (
        weight.kind == FP8_NAME
        and weight.block in (_SPECIALIZED_BLOCK, (1, inputs))
        and num_outputs % (2 * _MAX_COLUMNS) == 0
        and group == GROUP
        and inputs % GROUP == 0
        and weight.values.data_ptr() % _TMA_BYTES == 0
    )
