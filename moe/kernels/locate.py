"""Which part of an expert GEMM a program computes.

Owns device functions: a tile of rows and some columns of them, and the expert of one route, from
its id or from its token's logits. Does not know what is multiplied.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moe.base.launch import wait_for_previous
from moe.base.tile_order import tile_and_columns, together
from moe.kernels.topk import choose_one


@triton.jit
def locate(
    tile_expert_ptr,
    NUM_COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """The program's tile, its block of columns and the tile's expert, −1 where no tile is; a matrix
    is [NUM_COLUMNS, DEPTH].

    With PDL it first waits for the kernel before, which may have written the tiles.
    """
    num_n: tl.constexpr = (NUM_COLUMNS + BLOCK_N - 1) // BLOCK_N
    tile, n = tile_and_columns(
        tl.program_id(0), tl.num_programs(0) // num_n, num_n, together(NUM_COLUMNS * DEPTH)
    )
    wait_for_previous(PDL)
    return tile, n, tl.load(tile_expert_ptr + tile)


@triton.jit
def local_expert(ids_ptr, map_ptr, route, HAS_MAP: tl.constexpr):
    """Local expert of a route, −1 where there is none."""
    return _to_local(tl.load(ids_ptr + route), map_ptr, HAS_MAP)


@triton.jit
def chosen_expert(choice, ids_ptr, map_ptr, route, HAS_MAP: tl.constexpr, CHOOSES: tl.constexpr):
    """As `local_expert`, or with CHOOSES by a `Choice`: nobody has written ids yet."""
    if CHOOSES:
        expert = choose_one(choice, route // choice.k, route % choice.k)
    else:
        expert = tl.load(ids_ptr + route)
    return _to_local(expert, map_ptr, HAS_MAP)


@triton.jit
def _to_local(expert, map_ptr, HAS_MAP: tl.constexpr):
    if HAS_MAP:
        expert = tl.where(expert < 0, -1, tl.load(map_ptr + tl.maximum(expert, 0)))
    return expert
