"""Tiles of prefill queries cut along their contexts, where they are too few to fill the device.

Owns which steps are cut, the size of the splits and the limits that buffers are made by. Knows
neither how queries become tiles (workers.attention.plan) nor the device: numpy in and out.
"""

from __future__ import annotations

import numpy as np

from workers.attention.plan import (
    AttentionKind,
    plan_prefill,
    prefill_tile_tokens,
    prefill_tiles,
)
from workers.rows import StepRows

# Columns of an entry, as the prefill kernel reads them; of a whole tile the last three are zeros.
FIRST, COUNT, SLOT, POSITION, KEY_START, KEY_STOP, SPLIT, FIRST_SPLIT, NUM_SPLITS = range(9)
SPLIT_FIELDS = 9

# Programs of 64 query rows that a multiprocessor runs at once.
_PROGRAMS = 2
# Shorter splits cost more than they spread, in units.
_MIN_UNITS = 4
_CANDIDATES = 32


def prefill_fill(kv_heads: int, num_cores: int) -> int:
    """Entries, each a program a key head, that the device runs at once."""
    return max(1, _PROGRAMS * num_cores // kv_heads)


def max_splits(kv_heads: int, num_cores: int) -> int:
    """Splits of a step: a split tile has two at least, and there are at most `prefill_fill` entries
    more than tiles."""
    return 2 * prefill_fill(kv_heads, num_cores)


def tile_columns(
    rows: StepRows,
    num_decodes: int,
    *,
    kind: AttentionKind,
    kv_heads: int,
    num_cores: int,
    shape: tuple[int, int] | None,
) -> np.ndarray:
    """The tiles of prefill attention for the rows behind the decodes.

    Whether tiles may be split follows from the step's tokens alone, padding and decodes included:
    warm-up, whose steps have the fewest and the most tokens of each kind of tiles, sees all.

    Args:
        kind: a window bounds a tile's keys, so none is split.
        shape: tokens, and most rows, of the captured shape the step is padded to.

    Returns:
        int32: of `split_tiles` where the tokens' tiles leave room on the device, else of
        `plan_prefill`; of a captured shape always as many, zeros behind.
    """
    num_tokens = int(rows.num_tokens.sum()) if shape is None else shape[0]
    tiles = prefill_tiles(num_tokens)
    tile_tokens = prefill_tile_tokens(tiles.block_m, kind.num_heads, kv_heads)
    columns = plan_prefill(
        rows.num_tokens[num_decodes:],
        rows.positions[num_decodes:],
        rows.first_token[num_decodes:],
        rows.slots[num_decodes:],
        tile_tokens,
    )
    fill, spare = prefill_fill(kv_heads, num_cores), 0
    if kind.window is None and tiles.unit is not None and num_tokens // tile_tokens < fill:
        columns = split_tiles(columns, fill, tiles.unit)
        spare = fill
    if shape is None:
        return columns
    size = num_tokens // tile_tokens + min(shape[1], num_tokens) + spare
    padding = np.zeros((size - len(columns), columns.shape[1]), dtype=np.int32)
    return np.concatenate((columns, padding))


def split_tiles(tiles: np.ndarray, fill: int, unit: int) -> np.ndarray:
    """Cut the tiles with the longest contexts so that all end early.

    No split begins behind its tile's first query: every query sees a key of every split.

    Args:
        tiles: int32 ``[P, 4]``, of plan_prefill.
        fill: entries that run at once, and at most so many more than tiles there will be.
        unit: all splits but a tile's last have the same multiple of so many keys.

    Returns:
        int32 ``[E, 9]``, those of the most keys first: the tile's fields, first key, key behind the
        last, place among the splits in the order of their tiles and keys, that of the tile's first
        split, and the tile's number of splits; a whole tile's last three are zeros.
    """
    position_P = tiles[:, POSITION]
    keys_P = position_P + tiles[:, COUNT]
    chunk = _chunk_keys(position_P, keys_P, fill, unit)
    counts_P = position_P // chunk + 1
    tile_E = np.repeat(np.arange(len(tiles)), counts_P)
    ordinal_E = np.arange(len(tile_E)) - np.repeat(np.cumsum(counts_P) - counts_P, counts_P)
    splits_P = np.where(counts_P > 1, counts_P, 0)
    first_split_E = np.where(splits_P > 0, np.cumsum(splits_P) - splits_P, 0)[tile_E]
    entries = np.empty((len(tile_E), SPLIT_FIELDS), dtype=np.int32)
    entries[:, :4] = tiles[tile_E]
    entries[:, KEY_START] = ordinal_E * chunk
    last_E = ordinal_E + 1 == counts_P[tile_E]
    entries[:, KEY_STOP] = np.where(last_E, keys_P[tile_E], (ordinal_E + 1) * chunk)
    entries[:, SPLIT] = first_split_E + ordinal_E
    entries[:, FIRST_SPLIT] = first_split_E
    entries[:, NUM_SPLITS] = splits_P[tile_E]
    return entries[np.argsort(entries[:, KEY_START] - entries[:, KEY_STOP], kind="stable")]


def _chunk_keys(position_P: np.ndarray, keys_P: np.ndarray, fill: int, unit: int) -> int:
    """Keys of a split with which the longest program ends first, of a few sizes.

    Estimated, where an entry costs a unit beyond its keys: those of more than half a split take the
    programs one after the other; what the others take beyond the programs left comes last.
    """
    longest = int(keys_P.max(initial=0))
    whole = max(longest, 1)
    low = max(_MIN_UNITS * unit, int(keys_P.sum()) // (2 * fill))
    if longest <= low:
        return whole
    chunk_C = -(-np.geomspace(longest, low, _CANDIDATES).astype(np.int64) // unit) * unit
    counts_CP = position_P // chunk_C[:, None] + 1
    rest_CP = keys_P - (counts_CP - 1) * chunk_C[:, None]
    short_CP = np.where(2 * rest_CP <= chunk_C[:, None], rest_CP + unit, 0)
    entries_C = counts_CP.sum(1)
    long_C = entries_C - (short_CP > 0).sum(1)
    cost_C = np.minimum(chunk_C, longest) + unit
    rounds_C = -(-long_C // fill)
    fits_C = short_CP.sum(1) <= (rounds_C * fill - long_C) * cost_C
    end_C = rounds_C * cost_C + np.where(fits_C, 0, short_CP.max(1))
    end_C = np.maximum(end_C, (keys_P.sum() + entries_C * unit) / fill)
    end_C[entries_C > len(keys_P) + fill] = np.inf
    # The first are the largest: of equal ends the one of the fewest splits.
    return int(chunk_C[np.argmin(end_C)])
