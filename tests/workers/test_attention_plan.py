"""The division of attention's work: every token once, within what the graph has room for."""

import numpy as np
import pytest

from workers.attention_plan import (
    CHUNK_ROW,
    CHUNK_SLOT,
    CHUNK_START,
    CHUNK_STOP,
    CHUNK_WHOLE,
    DecodePlan,
    decode_capacity,
    num_splits,
    plan_decode,
    plan_prefill,
    prefill_tile_tokens,
)


def decode_case(seed: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Lengths (some 0), slots, capacity, tile."""
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 40))
    lengths = rng.integers(0, rng.choice([2, 70, 3000]), num_rows)
    if seed % 3 == 0:
        lengths[rng.integers(num_rows)] = 32768
    capacity = num_rows + int(rng.integers(0, rng.choice([1, 5, 300]) + 1))
    return lengths, rng.permutation(num_rows), capacity, int(rng.choice([16, 64]))


@pytest.mark.parametrize("seed", range(60))
def test_chunks_cover_every_token_once(seed: int) -> None:
    lengths, slots, capacity, tile = decode_case(seed)
    plan = plan_decode(lengths, slots, capacity, tile)
    assert plan.chunks.shape == (capacity, 5)
    assert plan.chunks.dtype == plan.splits.dtype == np.int32
    assert plan.chunk_tokens % tile == 0
    assert plan.splits.shape == (num_splits(len(lengths), capacity), 3)
    splits = {row: (first, count) for row, first, count in plan.splits if row >= 0}
    assert len(splits) == (plan.splits[:, 0] >= 0).sum()
    used = 0
    for row, length in enumerate(lengths):
        at = np.flatnonzero(plan.chunks[:, CHUNK_ROW] == row)
        assert (np.diff(at) == 1).all()
        chunks = plan.chunks[at]
        assert (chunks[:, CHUNK_SLOT] == slots[row]).all()
        assert (chunks[:, CHUNK_WHOLE] == (len(at) == 1)).all()
        assert splits.get(row) == ((at[0], len(at)) if len(at) > 1 else None)
        tokens = [t for c in chunks for t in range(c[CHUNK_START], c[CHUNK_STOP])]
        assert tokens == list(range(length))
        sizes = chunks[:, CHUNK_STOP] - chunks[:, CHUNK_START]
        assert (sizes[:-1] == plan.chunk_tokens).all()
        assert (sizes[-1] > 0) == (length > 0)
        used += len(at)
    assert (plan.chunks[used:, CHUNK_ROW] == -1).all()


@pytest.mark.parametrize("seed", range(60))
def test_chunks_are_the_smallest_that_fit(seed: int) -> None:
    lengths, slots, capacity, tile = decode_case(seed)
    size = plan_decode(lengths, slots, capacity, tile).chunk_tokens
    assert size == next(
        size
        for size in range(tile, 1 << 20, tile)
        if np.maximum(-(-lengths // size), 1).sum() <= capacity
    )


def chunks_of(plan: DecodePlan, num_rows: int) -> np.ndarray:
    return np.bincount(plan.chunks[:, CHUNK_ROW] + 1, minlength=num_rows + 1)[1:]


def test_longer_rows_come_first() -> None:
    plan = plan_decode(np.array([3, 500, 0, 70]), np.arange(4), 6, 16)
    assert plan.chunks[:, CHUNK_ROW].tolist() == [1, 1, 1, 3, 0, 2]
    assert plan.splits.tolist() == [[1, 0, 3], [-1, 0, 0]]


def test_one_long_row_among_short_ones_is_spread() -> None:
    lengths = np.full(256, 90)
    lengths[100] = 32768
    plan = plan_decode(lengths, np.arange(256), decode_capacity(256, 4, 132), 64)
    counts = chunks_of(plan, 256)
    assert counts[100] >= 60
    assert (np.delete(counts, 100) == 1).all()


def test_a_full_batch_is_not_cut_and_a_single_row_fills_the_gpu() -> None:
    capacity = decode_capacity(256, 4, 132)
    assert 256 <= capacity <= 400
    plan = plan_decode(np.full(256, 1100), np.arange(256), capacity, 64)
    assert (chunks_of(plan, 256) == 1).all()
    plan = plan_decode(np.array([32768]), np.array([0]), decode_capacity(1, 4, 132), 64)
    assert 132 <= 4 * chunks_of(plan, 1)[0] <= 3 * 132


def test_more_rows_than_room_are_refused() -> None:
    with pytest.raises(AssertionError, match="3 rows"):
        plan_decode(np.array([1, 1, 1]), np.arange(3), 2, 16)


@pytest.mark.parametrize("seed", range(40))
def test_tiles_cover_every_query_once_longest_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 9))
    num_tokens = rng.integers(1, 90, num_rows)
    positions = rng.integers(0, 500, num_rows) * rng.integers(0, 2, num_rows)
    first_token = 5 + np.cumsum(num_tokens) - num_tokens
    slots = rng.permutation(num_rows)
    tile_tokens = int(rng.choice([1, 5, 16, 128]))
    tiles = plan_prefill(num_tokens, positions, first_token, slots, tile_tokens)
    assert tiles.dtype == np.int32
    assert (tiles[:, 1] >= 1).all()
    assert (tiles[:, 1] <= tile_tokens).all()
    ends = tiles[:, 3] + tiles[:, 1]
    assert (np.diff(ends) <= 0).all()
    got = sorted(
        (token + i, slot, position + i) for token, n, slot, position in tiles for i in range(n)
    )
    assert got == [
        (first_token[row] + i, slots[row], positions[row] + i)
        for row in range(num_rows)
        for i in range(num_tokens[row])
    ]


def test_no_prefill_has_no_tiles() -> None:
    empty = np.zeros(0, dtype=np.int64)
    assert plan_prefill(empty, empty, empty, empty, 16).shape == (0, 4)


def test_tile_tokens_hold_all_heads_of_a_key_head() -> None:
    assert prefill_tile_tokens(128, 32, 4) == 16
    assert prefill_tile_tokens(128, 12, 4) == 42
    assert prefill_tile_tokens(64, 4, 4) == 64
    with pytest.raises(AssertionError, match="32 query heads"):
        prefill_tile_tokens(16, 32, 1)
