"""How the attention of one step is divided among programs: made by the host, read by the kernels.

Owns the split of long decode contexts, the tiles of prefill queries, and the sizes both are cut by.
Knows neither heads' contents nor the device: numpy in, int32 arrays out, at every step anew.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

# Columns of a plan's chunks, as the decode kernel reads them.
CHUNK_ROW, CHUNK_SLOT, CHUNK_START, CHUNK_STOP, CHUNK_INDEX, CHUNK_FIRST, CHUNK_COUNT = range(7)
CHUNK_OF_ROW = 7
CHUNK_FIELDS = 8  # 32 bytes

# What the kernels have registers and shared memory for.
MAX_HEAD_DIM = 256
MAX_GROUP = 64

_FEW_ROWS = 16
# Numbers of a key or value beyond which tiles are smaller, for want of registers; of FP8 also up to
# so many, which warps share badly.
_WIDE, _NARROW = 128, 64
# Programs a multiprocessor: all of a batch of few rows; of a larger batch, those beyond one for
# each row and key head.
_FILL = 1.1
_SPARE = 0.25


class AttentionKind(NamedTuple):
    """What layers have alike that share a step's plan.

    Attributes:
        window: keys that a query sees, its own included; None: all before it.
        num_heads: query heads of this rank.
    """

    window: int | None
    num_heads: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTiles:
    """How decodes are cut.

    Attributes:
        unit: chunks have multiples of so many tokens.
        tile: tokens handled at once, a power of two of at least 16; a pipeline of ``num_stages``.
        join: chunks of a row that the program which joins them reads at once, fewer of many or wide
            heads; each costs registers. 0: a kernel of its own joins.
        max_registers: of a thread, so that more programs fit; None: as many as it takes.
    """

    unit: int = 64
    tile: int = 64
    join: int = 16
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrefillTiles:
    """How prefills are cut.

    Attributes:
        block_m: query rows of a tile, each query head of a token being one; block_n: keys handled
            at once; powers of two of at least 16.
        num_stages: tiles of keys in flight, if shared memory holds as many.
        max_registers: as above.
        unit: splits of a tile have multiples of so many keys, itself a multiple of block_n;
            None: no tile is split.
    """

    block_m: int = 128
    block_n: int = 64
    num_warps: int = 8
    num_stages: int = 3
    max_registers: int | None = None
    unit: int | None = None


def decode_tiles(num_rows: int, *, fp8: bool = False, width: int = _WIDE) -> DecodeTiles:
    """For a batch of so many decodes, padding included: the fastest of a sweep on an H200.

    Args:
        fp8: the cache is: tiles chosen by their compiled code, not measured. Contexts are cut by
            the same unit, since a plan knows no cache.
        width: numbers of a key or a value, of what has more; tiles of others than 128 likewise.
    """
    if num_rows <= _FEW_ROWS:
        return DecodeTiles(join=0)
    if width > _WIDE or (fp8 and width <= _NARROW):
        if num_rows <= 64:
            return DecodeTiles(join=8)
        return DecodeTiles(tile=32, join=4, max_registers=128)
    if num_rows <= 64:
        return DecodeTiles(tile=128 if fp8 else 64)
    return DecodeTiles(join=8, num_stages=3 if fp8 else 2, max_registers=128)


def prefill_tiles(num_tokens: int, *, fp8: bool = False, width: int = _WIDE) -> PrefillTiles:
    """For a step of so many tokens, decodes and padding included: as above, with the same block_m
    and unit for any cache."""
    if width > _WIDE:
        if num_tokens <= 4096:
            return PrefillTiles(block_m=64, block_n=32, num_warps=4, num_stages=2, unit=256)
        return PrefillTiles(block_n=32 if fp8 else 64, num_stages=2)
    if num_tokens <= 4096:
        return PrefillTiles(block_m=64, num_warps=4, unit=256)
    if fp8:
        return PrefillTiles(block_n=128, num_stages=2)
    return PrefillTiles(num_stages=2, max_registers=128)


def decode_capacity(num_rows: int, kv_heads: int, num_sms: int, window: int | None = None) -> int:
    """Chunks that a graph of ``num_rows`` rows has room for: few rows are split to give every
    multiprocessor a program, many only where a row is far longer than the others. A window has no
    more than its units."""
    filling = math.ceil(_FILL * num_sms / kv_heads)
    capacity = max(num_rows + math.ceil(_SPARE * num_sms / kv_heads), filling)
    if window is None:
        return capacity
    return min(capacity, num_rows * -(-window // decode_tiles(num_rows).unit))


def plan_decode(
    lengths: np.ndarray, slots: np.ndarray, capacity: int, unit: int, window: int | None = None
) -> np.ndarray:
    """Cut contexts into chunks of the fewest tokens that still give at most ``capacity`` chunks.

    Args:
        lengths: ``[R]``, context of each row; 0: a padding row, which has one empty chunk.
        slots: ``[R]``, where each row's block table stands.
        unit: all chunks but a row's last have the same multiple of so many tokens.
        window: only so many tokens of a row, the last, are in chunks; None: all.

    Returns:
        int32 ``[capacity, 8]``, the largest chunks first: row (-1: unused), slot, first token,
        token behind the last, place among the chunks in the order of their rows and tokens, that
        of the row's first chunk, and the row's number of chunks. The last column is no chunk's: in
        entry i it says which entry is the first chunk of row i.
    """
    lengths = np.asarray(lengths, dtype=np.int32)
    num_rows = len(lengths)
    assert num_rows <= capacity, f"{num_rows} rows need more than {capacity} chunks"
    starts_R = np.zeros_like(lengths) if window is None else np.maximum(lengths - window, 0)
    units_R = np.maximum((lengths - starts_R + (unit - 1)) // unit, 1)
    chunk_units = _smallest_chunk(units_R, capacity)
    chunk_tokens = chunk_units * unit
    counts_R = (units_R + (chunk_units - 1)) // chunk_units
    firsts_R = np.cumsum(counts_R) - counts_R

    row_C = np.repeat(np.arange(num_rows), counts_R)
    index_C = np.arange(len(row_C))
    start_C = starts_R[row_C] + (index_C - firsts_R[row_C]) * chunk_tokens
    stop_C = np.minimum(start_C + chunk_tokens, lengths[row_C])
    order_C = np.argsort(start_C - stop_C, kind="stable")
    first_C, count_C = firsts_R[row_C], counts_R[row_C]
    columns = (row_C, np.asarray(slots)[row_C], start_C, stop_C, index_C, first_C, count_C)
    chunks = np.zeros((capacity, CHUNK_FIELDS), dtype=np.int32)
    chunks[len(row_C) :, CHUNK_ROW] = -1
    for field, column in enumerate(columns):
        chunks[: len(row_C), field] = column[order_C]
    entry_C = np.empty_like(order_C)
    entry_C[order_C] = index_C
    chunks[:num_rows, CHUNK_OF_ROW] = entry_C[firsts_R]
    return chunks


def _smallest_chunk(units_R: np.ndarray, capacity: int) -> int:
    """The least units a chunk may have; the number of chunks never grows with it.

    Searched between total / capacity (perfect packing) and what is enough for any lengths: a
    row's count is less than its units / size + 1.
    """
    total, longest = int(units_R.sum()), int(units_R.max(initial=1))
    low = max(1, -(-total // capacity))
    spare = capacity - len(units_R)
    high = max(low, min(longest, -(-total // spare) if spare else longest))
    while low < high:
        middle = (low + high) // 2
        if int(((units_R + (middle - 1)) // middle).sum()) <= capacity:
            high = middle
        else:
            low = middle + 1
    return low


def prefill_tile_tokens(block_m: int, num_heads: int, kv_heads: int) -> int:
    """Tokens of a tile of ``block_m`` query rows: all query heads of a key head share a tile."""
    tokens = block_m * kv_heads // num_heads
    assert tokens, f"{num_heads // kv_heads} query heads a key head do not fit {block_m} rows"
    return tokens


def plan_prefill(
    num_tokens: np.ndarray,
    positions: np.ndarray,
    first_token: np.ndarray,
    slots: np.ndarray,
    tile_tokens: int,
) -> np.ndarray:
    """Cut the queries of each row into tiles, those with the longest contexts first.

    Args:
        num_tokens: ``[R]``, query tokens of each row.
        positions: ``[R]``, position of each row's first query token.
        first_token: ``[R]``, where in the batch that token stands.
        slots: ``[R]``, where each row's block table stands.
        tile_tokens: see prefill_tile_tokens.

    Returns:
        int32 ``[P, 4]``: first token in the batch, number of tokens, slot, position of the first.
    """
    num_tokens = np.asarray(num_tokens, dtype=np.int32)
    counts_R = (num_tokens + (tile_tokens - 1)) // tile_tokens
    row_P = np.repeat(np.arange(len(num_tokens)), counts_R)
    firsts_R = np.cumsum(counts_R) - counts_R
    offset_P = (np.arange(len(row_P)) - firsts_R[row_P]) * tile_tokens
    tiles = np.empty((len(row_P), 4), dtype=np.int32)
    tiles[:, 0] = np.asarray(first_token)[row_P] + offset_P
    tiles[:, 1] = np.minimum(num_tokens[row_P] - offset_P, tile_tokens)
    tiles[:, 2] = np.asarray(slots)[row_P]
    tiles[:, 3] = np.asarray(positions)[row_P] + offset_P
    return tiles[np.argsort(-(tiles[:, 3] + tiles[:, 1]), kind="stable")]
