"""Routes in order of their expert, and the tiles that cut them for grouped GEMMs.

Owns the order, the offsets and the tile table. Does not know tokens, weights or GEMMs.
P routes, E global experts, L local experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from moe.kernels.launch import launch_options


class Alignment(NamedTuple):
    """What a grouped GEMM needs, all int32 on the device.

    `order` [P] holds route numbers by local expert, then by route number; behind the local routes
    it is undefined. `offsets` [L+1] is each expert's first place in `order`, and their number.
    A tile is of expert `tile_expert[i]` and starts at place `tile_start[i]`; tiles stand in order
    of place. An entry of expert −1 is no tile (its start is undefined): such stand behind all tiles
    where routes are few, also between experts where they are many.
    """

    order: torch.Tensor
    offsets: torch.Tensor
    tile_expert: torch.Tensor
    tile_start: torch.Tensor


# Up to so many routes one block of a program holds them all, and tiles stand without gaps.
_FEW_ROUTES = 2048


def max_tiles(num_routes: int, num_local: int, block_m: int) -> int:
    """Length of the tile table: enough for however many routes each expert has.

    Few routes: the first route of an expert makes a tile, each further tile takes block_m. Many:
    see `_align_kernel`.
    """
    if num_routes <= num_local:
        return num_routes
    if num_routes <= _FEW_ROUTES:
        return num_local + (num_routes - num_local) // block_m
    return num_local + num_routes // block_m


def allocate_alignment(
    num_routes: int, num_local: int, block_m: int, device: torch.device | str
) -> Alignment:
    """An Alignment of the right sizes, its values undefined."""
    tiles = max_tiles(num_routes, num_local, block_m)
    sizes = (num_routes, num_local + 1, tiles, tiles)
    return Alignment(*(torch.empty(size, dtype=torch.int32, device=device) for size in sizes))


@triton.jit
def _load_local(ids_ptr, map_ptr, start, P, BLOCK: tl.constexpr, HAS_MAP: tl.constexpr):
    """Local expert of BLOCK routes, −1 where foreign, padding or past the last."""
    routes = start + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + routes, mask=routes < P, other=-1)
    if HAS_MAP:
        ids = tl.load(map_ptr + ids, mask=ids >= 0, other=-1)
    return ids


@triton.jit
def _place(order_ptr, is_mine, place, start, BLOCK: tl.constexpr):
    """Write one expert's routes of a block in a row; returns the place behind them."""
    rank = tl.cumsum(is_mine.to(tl.int32), axis=0) - 1
    tl.store(order_ptr + place + rank, start + tl.arange(0, BLOCK), mask=is_mine)
    return place + tl.sum(is_mine.to(tl.int32), axis=0)


@triton.jit(do_not_specialize=["P", "max_tiles"])
def _align_kernel(
    ids_ptr, map_ptr, order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr, P, max_tiles,
    NUM_LOCAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK: tl.constexpr,
    FEW: tl.constexpr, HAS_MAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One expert's share of the tables; every program counts all routes for itself.

    FEW (P ≤ BLOCK): all experts are counted, and tiles stand without gaps. Otherwise that would
    cost more than all else, so tiles of expert e stand from ⌊first / BLOCK_M⌋ + e on, which leaves
    at most one entry free before those of e + 1.
    """
    expert = tl.program_id(0)
    tiles = tl.arange(0, 128)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    local = _load_local(ids_ptr, map_ptr, 0, P, BLOCK, HAS_MAP)
    if FEW:
        experts_E = tl.arange(0, BLOCK_E)
        counts_E = tl.histogram(local, BLOCK_E, mask=local >= 0)
        tiles_E = (counts_E + (BLOCK_M - 1)) // BLOCK_M
        first = tl.sum(tl.where(experts_E < expert, counts_E, 0), axis=0)
        count = tl.sum(tl.where(experts_E == expert, counts_E, 0), axis=0)
        first_tile = tl.sum(tl.where(experts_E < expert, tiles_E, 0), axis=0)
        end_tile = first_tile + (count + (BLOCK_M - 1)) // BLOCK_M
    else:
        lower = ((local >= 0) & (local < expert)).to(tl.int32)
        mine = (local == expert).to(tl.int32)
        start = BLOCK
        while start < P:
            local = _load_local(ids_ptr, map_ptr, start, P, BLOCK, HAS_MAP)
            lower += ((local >= 0) & (local < expert)).to(tl.int32)
            mine += (local == expert).to(tl.int32)
            start += BLOCK
        first, count = tl.sum(lower, axis=0), tl.sum(mine, axis=0)
        first_tile = first // BLOCK_M + expert
        end_tile = (first + count) // BLOCK_M + expert + 1
    if expert == NUM_LOCAL - 1:
        tl.store(offsets_ptr + NUM_LOCAL, first + count)
        end_tile = max_tiles
    tl.store(offsets_ptr + expert, first)
    tile = first_tile
    while tile < end_tile:
        entries = tile + tiles
        starts = (entries - first_tile) * BLOCK_M
        is_entry = entries < end_tile
        tl.store(tile_expert_ptr + entries, tl.where(starts < count, expert, -1), mask=is_entry)
        tl.store(tile_start_ptr + entries, first + starts, mask=is_entry)
        tile += 128
    if count > 0:
        if FEW:
            _place(order_ptr, local == expert, first, 0, BLOCK)
        else:
            start = 0
            while start < P:
                local = _load_local(ids_ptr, map_ptr, start, P, BLOCK, HAS_MAP)
                first = _place(order_ptr, local == expert, first, start, BLOCK)
                start += BLOCK


def _block(num_routes: int) -> tuple[int, int]:
    """Routes a block and warps: few sizes, so that few kernels are compiled."""
    for block, warps in ((128, 1), (512, 4), (_FEW_ROUTES, 8)):
        if num_routes <= block:
            return block, warps
    return 8192, 16


def align(
    ids_P: torch.Tensor,
    expert_map_E: torch.Tensor | None,
    num_local: int,
    block_m: int,
    *,
    out: Alignment | None = None,
    pdl: bool = False,
) -> Alignment:
    """Sort routes by local expert, stable in the route's number, and cut them into tiles.

    Args:
        ids_P: int32, contiguous (any shape): global expert of each route, −1 for none.
        expert_map_E: int32, local index of a global expert or −1; None where all are local.
        block_m: rows of a tile.
        out: of `allocate_alignment` for the same sizes, or longer in its tiles.
    """
    P = ids_P.numel()
    if out is None:
        out = allocate_alignment(P, num_local, block_m, ids_P.device)
    assert num_local > 0
    assert ids_P.dtype == torch.int32
    assert ids_P.is_contiguous()
    assert expert_map_E is None or expert_map_E.dtype == torch.int32
    assert all(x.dtype == torch.int32 and x.is_contiguous() for x in out)
    assert out.order.shape == (P,)
    assert out.offsets.shape == (num_local + 1,)
    tiles = out.tile_expert.shape[0]
    assert out.tile_start.shape == (tiles,)
    assert tiles >= max_tiles(P, num_local, block_m)
    block, warps = _block(P)
    _align_kernel[(num_local,)](
        ids_P, expert_map_E, *out, P, tiles, NUM_LOCAL=num_local, BLOCK_M=block_m,
        BLOCK_E=triton.next_power_of_2(num_local), BLOCK=block,
        FEW=P <= _FEW_ROUTES, HAS_MAP=expert_map_E is not None, num_warps=warps,
        **launch_options(pdl),
    )  # fmt: skip
    return out
