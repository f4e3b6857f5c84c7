"""Routes in order of their expert, and the tiles that cut them for grouped GEMMs.

Owns the order, the offsets and the tile table. Does not know tokens, weights or GEMMs.
P routes, E global experts, L local experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous

# Up to so many routes one block of a program holds them all.
_FEW_ROUTES = 2048
# Of many routes each program takes one block: on an H200 the fastest of 512, 1024 and 2048.
_BLOCK, _WARPS = 512, 4
_ENTRIES = 32  # of the tile table, by one program
_MIN_EXPERTS = 32  # columns of the table of counts: one a lane


class Alignment(NamedTuple):
    """What a grouped GEMM needs, all int32 on the device.

    `order` [P] holds route numbers by local expert, then by route number; behind the local routes
    it is undefined. `offsets` [L+1] is each expert's first place in `order`, and their number.
    A tile is of expert `tile_expert[i]` and starts at place `tile_start[i]`; tiles stand in order
    of place. Behind all tiles stand entries of expert −1, whose start is undefined.
    """

    order: torch.Tensor
    offsets: torch.Tensor
    tile_expert: torch.Tensor
    tile_start: torch.Tensor


def max_tiles(num_routes: int, num_local: int, block_m: int) -> int:
    """Length of the tile table: enough for however many routes each expert has.

    The first route of an expert makes a tile, each further tile takes block_m.
    """
    if num_routes <= num_local:
        return num_routes
    return num_local + (num_routes - num_local) // block_m


def scratch_size(num_routes: int, num_local: int) -> int:
    """Counts that `align` keeps between its kernels: of each block of routes, by expert."""
    return -(-num_routes // _BLOCK) * _padded(num_local)


def _padded(num_local: int) -> int:
    return max(_MIN_EXPERTS, int(triton.next_power_of_2(num_local)))


def allocate_alignment(
    num_routes: int, num_local: int, block_m: int, device: torch.device | str
) -> Alignment:
    """An Alignment of the right sizes, its values undefined."""
    tiles = max_tiles(num_routes, num_local, block_m)
    sizes = (num_routes, num_local + 1, tiles, tiles)
    return Alignment(*(torch.empty(size, dtype=torch.int32, device=device) for size in sizes))


@triton.jit
def load_local(ids_ptr, map_ptr, routes, P, HAS_MAP: tl.constexpr):
    """Local expert of each route, −1 where foreign, padding or past the last."""
    ids = tl.load(ids_ptr + routes, mask=routes < P, other=-1)
    if HAS_MAP:
        ids = tl.load(map_ptr + ids, mask=ids >= 0, other=-1)
    return ids


@triton.jit(do_not_specialize=["P", "max_tiles", "shift"])
def _align_few_kernel(
    ids_ptr, map_ptr, order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr, P, max_tiles, shift,
    NUM_LOCAL: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK: tl.constexpr,
    HAS_MAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One expert's share of the tables; every program counts all P ≤ BLOCK routes for itself.
    Tiles have 1 << shift rows, in no variant of its own: sizes of steps that differ in both BLOCK
    and rows would be more than a warm-up sees."""
    expert = tl.program_id(0)
    tiles = tl.arange(0, 128)
    routes = tl.arange(0, BLOCK)
    wait_for_previous(PDL)
    local = load_local(ids_ptr, map_ptr, routes, P, HAS_MAP)
    experts_E = tl.arange(0, BLOCK_E)
    counts_E = tl.histogram(local, BLOCK_E, mask=local >= 0)
    tiles_E = (counts_E + ((1 << shift) - 1)) >> shift
    first = tl.sum(tl.where(experts_E < expert, counts_E, 0), axis=0)
    count = tl.sum(tl.where(experts_E == expert, counts_E, 0), axis=0)
    first_tile = tl.sum(tl.where(experts_E < expert, tiles_E, 0), axis=0)
    end_tile = first_tile + ((count + ((1 << shift) - 1)) >> shift)
    if expert == NUM_LOCAL - 1:
        tl.store(offsets_ptr + NUM_LOCAL, first + count)
        end_tile = max_tiles
    tl.store(offsets_ptr + expert, first)
    tile = first_tile
    while tile < end_tile:
        entries = tile + tiles
        starts = (entries - first_tile) << shift
        is_entry = entries < end_tile
        tl.store(tile_expert_ptr + entries, tl.where(starts < count, expert, -1), mask=is_entry)
        tl.store(tile_start_ptr + entries, first + starts, mask=is_entry)
        tile += 128
    if count > 0:
        is_mine = local == expert
        rank = tl.cumsum(is_mine.to(tl.int32), axis=0) - 1
        tl.store(order_ptr + first + rank, routes, mask=is_mine)


@triton.jit(do_not_specialize=["P"])
def _align_count_kernel(
    ids_ptr, map_ptr, counts_ptr, P,
    BLOCK: tl.constexpr, BLOCK_E: tl.constexpr, HAS_MAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """How many routes of one block each expert has."""
    block = tl.program_id(0)
    wait_for_previous(PDL)
    local = load_local(ids_ptr, map_ptr, block * BLOCK + tl.arange(0, BLOCK), P, HAS_MAP)
    counts_E = tl.histogram(local, BLOCK_E, mask=local >= 0)
    tl.store(counts_ptr + block * BLOCK_E + tl.arange(0, BLOCK_E), counts_E)


@triton.jit
def _sum_counts(counts_ptr, block, num_blocks, BLOCK_E: tl.constexpr):
    """Each expert's routes, in all blocks and in those before one."""
    ROWS: tl.constexpr = 8192 // BLOCK_E if BLOCK_E < 4096 else 2
    rows, experts_E = tl.arange(0, ROWS), tl.arange(0, BLOCK_E)
    total_E = tl.zeros((BLOCK_E,), tl.int32)
    before_E = tl.zeros((BLOCK_E,), tl.int32)
    for start in range(0, num_blocks, ROWS):
        blocks = start + rows
        counts_ptrs = counts_ptr + blocks[:, None] * BLOCK_E + experts_E[None, :]
        counts = tl.load(counts_ptrs, mask=(blocks < num_blocks)[:, None], other=0)
        total_E += tl.sum(counts, axis=0)
        before_E += tl.sum(tl.where((blocks < block)[:, None], counts, 0), axis=0)
    return total_E, before_E


@triton.jit
def _scatter(
    ids_ptr, map_ptr, counts_ptr, order_ptr, P, block, num_blocks,
    BLOCK: tl.constexpr, BLOCK_E: tl.constexpr, HAS_MAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Sort one block's routes and write each expert's run of them to its place."""
    places = tl.arange(0, BLOCK)
    # Ids are older than the counts, whose kernel has waited for them itself.
    local = load_local(ids_ptr, map_ptr, block * BLOCK + places, P, HAS_MAP)
    keys = tl.sort(tl.where(local >= 0, local, BLOCK_E) * BLOCK + places)
    experts, routes = keys // BLOCK, block * BLOCK + keys % BLOCK
    wait_for_previous(PDL)
    mine_E = tl.load(counts_ptr + block * BLOCK_E + tl.arange(0, BLOCK_E))
    total_E, before_E = _sum_counts(counts_ptr, block, num_blocks, BLOCK_E)
    # From a place in the sorted block to one in `order`, the same for all routes of an expert.
    others_E = total_E - mine_E
    shift_E = tl.cumsum(others_E, axis=0) - others_E + before_E
    shift = tl.gather(shift_E, tl.minimum(experts, BLOCK_E - 1), axis=0)
    tl.store(order_ptr + places + shift, routes, mask=experts < BLOCK_E)


@triton.jit
def _write_tiles(
    counts_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr, part, num_blocks, max_tiles, shift,
    NUM_LOCAL: tl.constexpr, BLOCK_E: tl.constexpr,
    ENTRIES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """ENTRIES of the tile table and, in part 0, the offsets."""
    experts_E = tl.arange(0, BLOCK_E)
    entries = part * ENTRIES + tl.arange(0, ENTRIES)
    is_entry = entries < max_tiles
    wait_for_previous(PDL)
    count_E, _ = _sum_counts(counts_ptr, 0, num_blocks, BLOCK_E)
    end_E = tl.cumsum(count_E, axis=0)
    tiles_E = (count_E + ((1 << shift) - 1)) >> shift
    end_tile_E = tl.cumsum(tiles_E, axis=0)
    # The expert of an entry comes after all whose tiles end at or before it.
    is_past = end_tile_E[None, :] <= entries[:, None]
    expert = tl.sum(is_past.to(tl.int32), axis=1)
    first_E = (end_E - count_E) - ((end_tile_E - tiles_E) << shift)
    first = tl.gather(first_E, tl.minimum(expert, BLOCK_E - 1), axis=0)
    tl.store(tile_expert_ptr + entries, tl.where(expert < BLOCK_E, expert, -1), mask=is_entry)
    tl.store(tile_start_ptr + entries, first + (entries << shift), mask=is_entry)
    if part == 0:
        tl.store(offsets_ptr + 1 + experts_E, end_E, mask=experts_E < NUM_LOCAL)
        tl.store(offsets_ptr, 0)


@triton.jit(do_not_specialize=["P", "num_blocks", "max_tiles", "shift"])
def _align_many_kernel(
    ids_ptr, map_ptr, counts_ptr, order_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr,
    P, num_blocks, max_tiles, shift, NUM_LOCAL: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK: tl.constexpr, ENTRIES: tl.constexpr,
    HAS_MAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """From the blocks' counts: one block's part of the order, or one of the tables."""
    program = tl.program_id(0)
    if program < num_blocks:
        _scatter(
            ids_ptr, map_ptr, counts_ptr, order_ptr, P, program, num_blocks,
            BLOCK, BLOCK_E, HAS_MAP, PDL,
        )  # fmt: skip
    else:
        _write_tiles(
            counts_ptr, offsets_ptr, tile_expert_ptr, tile_start_ptr, program - num_blocks,
            num_blocks, max_tiles, shift, NUM_LOCAL, BLOCK_E, ENTRIES, PDL,
        )  # fmt: skip


def align(
    ids_P: torch.Tensor,
    expert_map_E: torch.Tensor | None,
    num_local: int,
    block_m: int,
    *,
    out: Alignment | None = None,
    scratch: torch.Tensor | None = None,
    pdl: bool = False,
) -> Alignment:
    """Sort routes by local expert, stable in the route's number, and cut them into tiles.

    Args:
        ids_P: int32, contiguous (any shape): global expert of each route, −1 for none.
        expert_map_E: int32, local index of a global expert or −1; None where all are local.
        block_m: rows of a tile.
        out: of `allocate_alignment` for the same sizes, or longer in its tiles.
        scratch: int32 of at least `scratch_size`.
    """
    P = ids_P.numel()
    if out is None:
        out = allocate_alignment(P, num_local, block_m, ids_P.device)
    if scratch is None:
        scratch = ids_P.new_empty(scratch_size(P, num_local))
    assert num_local > 0
    assert ids_P.dtype == torch.int32
    assert ids_P.is_contiguous()
    assert expert_map_E is None or expert_map_E.dtype == torch.int32
    assert all(x.dtype == torch.int32 and x.is_contiguous() for x in (*out, scratch))
    assert out.order.shape == (P,)
    assert out.offsets.shape == (num_local + 1,)
    tiles = out.tile_expert.shape[0]
    assert out.tile_start.shape == (tiles,)
    assert tiles >= max_tiles(P, num_local, block_m)
    assert scratch.numel() >= scratch_size(P, num_local)
    if P <= _FEW_ROUTES:
        _launch_few(ids_P, expert_map_E, num_local, block_m, out, pdl)
    else:
        _launch_many(ids_P, expert_map_E, num_local, block_m, out, scratch, pdl)
    return out


def _launch_few(
    ids_P: torch.Tensor,
    expert_map_E: torch.Tensor | None,
    num_local: int,
    block_m: int,
    out: Alignment,
    pdl: bool,
) -> None:
    # Few sizes, so that few kernels are compiled.
    sizes = ((128, 1), (512, 4), (_FEW_ROUTES, 8))
    block, warps = next(size for size in sizes if ids_P.numel() <= size[0])
    _align_few_kernel[(num_local,)](
        ids_P, expert_map_E, *out, ids_P.numel(), out.tile_expert.shape[0], _shift(block_m),
        NUM_LOCAL=num_local, BLOCK_E=triton.next_power_of_2(num_local),
        BLOCK=block, HAS_MAP=expert_map_E is not None, num_warps=warps, **launch_options(pdl),
    )  # fmt: skip


def _launch_many(
    ids_P: torch.Tensor,
    expert_map_E: torch.Tensor | None,
    num_local: int,
    block_m: int,
    out: Alignment,
    scratch: torch.Tensor,
    pdl: bool,
) -> None:
    P, tiles = ids_P.numel(), out.tile_expert.shape[0]
    num_blocks = triton.cdiv(P, _BLOCK)
    options = launch_options(pdl)
    options |= {"BLOCK": _BLOCK, "BLOCK_E": _padded(num_local)}
    options |= {"HAS_MAP": expert_map_E is not None, "num_warps": _WARPS}
    _align_count_kernel[(num_blocks,)](ids_P, expert_map_E, scratch, P, **options)
    _align_many_kernel[(num_blocks + triton.cdiv(tiles, _ENTRIES),)](
        ids_P, expert_map_E, scratch, *out, P, num_blocks, tiles, _shift(block_m),
        NUM_LOCAL=num_local, ENTRIES=_ENTRIES, **options,
    )  # fmt: skip


def _shift(block_m: int) -> int:
    assert block_m & (block_m - 1) == 0, block_m
    return block_m.bit_length() - 1
