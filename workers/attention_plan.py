"""How the attention of one step is divided among programs: made by the host, read by the kernels.

Owns the split of long decode contexts, and the tiles of prefill queries. Knows neither heads'
contents nor the device: numpy in, int32 arrays out, at every step anew.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# Columns of DecodePlan.chunks, as the decode kernel reads them.
CHUNK_ROW, CHUNK_SLOT, CHUNK_START, CHUNK_STOP, CHUNK_WHOLE = range(5)
CHUNK_FIELDS = 5

# Programs of one key head for each multiprocessor that a batch with few rows is cut into.
_PROGRAMS_PER_SM = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecodePlan:
    """Chunks of contexts. Every row has one at least: an empty one if it is padding.

    Attributes:
        chunks: ``[capacity, 5]``: row (-1: unused), slot, first token, token behind the last, and
            whether the row has no other chunk. A row's chunks are neighbours in order of tokens;
            rows of longer contexts come first.
        splits: ``[num_splits, 3]``: row (-1: unused), first chunk and number of chunks of each
            row that has more than one.
        chunk_tokens: tokens of every chunk but a row's last.
    """

    chunks: np.ndarray
    splits: np.ndarray
    chunk_tokens: int


def decode_capacity(num_rows: int, kv_heads: int, num_sms: int) -> int:
    """Chunks that a graph of ``num_rows`` rows has room for: one a row, and enough beyond that
    for few long rows to fill the GPU."""
    return num_rows + -(-_PROGRAMS_PER_SM * num_sms // kv_heads)


def num_splits(num_rows: int, capacity: int) -> int:
    """Rows that may have more than one chunk, since each has one."""
    return min(num_rows, capacity - num_rows)


def plan_decode(lengths: np.ndarray, slots: np.ndarray, capacity: int, tile: int) -> DecodePlan:
    """Cut contexts into chunks of the fewest tokens that still give at most ``capacity`` chunks.

    Args:
        lengths: ``[R]``, context of each row; 0: a padding row.
        slots: ``[R]``, where each row's block table stands.
        tile: chunks are multiples of so many tokens.
    """
    lengths = np.asarray(lengths, dtype=np.int32)
    num_rows = len(lengths)
    assert num_rows <= capacity, f"{num_rows} rows need more than {capacity} chunks"
    tiles_R = np.maximum((lengths + (tile - 1)) // tile, 1)
    chunk_tiles = _smallest_chunk(tiles_R, capacity)
    chunk_tokens = chunk_tiles * tile
    order_R = np.argsort(-lengths, kind="stable")
    counts_R = ((tiles_R + (chunk_tiles - 1)) // chunk_tiles)[order_R]
    firsts_R = np.cumsum(counts_R) - counts_R

    splits = np.zeros((num_splits(num_rows, capacity), 3), dtype=np.int32)
    split = int(np.count_nonzero(counts_R > 1))
    splits[split:, 0] = -1
    for column, source in enumerate((order_R, firsts_R, counts_R)):
        splits[:split, column] = source[:split]

    rank_C = np.repeat(np.arange(num_rows), counts_R)
    row_C = order_R[rank_C]
    chunks = np.zeros((capacity, CHUNK_FIELDS), dtype=np.int32)
    chunks[len(row_C) :, CHUNK_ROW] = -1
    used = chunks[: len(row_C)]
    start_C = (np.arange(len(row_C)) - firsts_R[rank_C]) * chunk_tokens
    used[:, CHUNK_ROW] = row_C
    used[:, CHUNK_SLOT] = np.asarray(slots)[row_C]
    used[:, CHUNK_START] = start_C
    used[:, CHUNK_STOP] = np.minimum(start_C + chunk_tokens, lengths[row_C])
    used[:, CHUNK_WHOLE] = counts_R[rank_C] == 1
    return DecodePlan(chunks=chunks, splits=splits, chunk_tokens=chunk_tokens)


def _smallest_chunk(tiles_R: np.ndarray, capacity: int) -> int:
    """The least tiles a chunk may have; the number of chunks never grows with it.

    Searched between total / capacity (perfect packing) and what is enough for any lengths: a
    row's count is less than its tiles / size + 1.
    """
    total, longest = int(tiles_R.sum()), int(tiles_R.max(initial=1))
    low = max(1, -(-total // capacity))
    spare = capacity - len(tiles_R)
    high = max(low, min(longest, -(-total // spare) if spare else longest))
    while low < high:
        middle = (low + high) // 2
        if int(((tiles_R + (middle - 1)) // middle).sum()) <= capacity:
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
