"""The division of attention's work: every token once, within what the graph has room for."""

import numpy as np
import pytest

from workers.attention.plan import (
    CHUNK_COUNT,
    CHUNK_FIRST,
    CHUNK_INDEX,
    CHUNK_OF_ROW,
    CHUNK_ROW,
    CHUNK_SLOT,
    CHUNK_START,
    CHUNK_STOP,
    decode_capacity,
    decode_tiles,
    plan_decode,
    plan_prefill,
    prefill_tile_tokens,
)


def decode_case(seed: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Lengths (some 0), slots, capacity, unit."""
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 40))
    lengths = rng.integers(0, rng.choice([2, 70, 3000]), num_rows)
    if seed % 3 == 0:
        lengths[rng.integers(num_rows)] = 32768
    capacity = num_rows + int(rng.integers(0, rng.choice([1, 5, 300]) + 1))
    return lengths, rng.permutation(num_rows), capacity, int(rng.choice([16, 64]))


def chunks_of(chunks: np.ndarray, num_rows: int) -> np.ndarray:
    return np.bincount(chunks[:, CHUNK_ROW] + 1, minlength=num_rows + 1)[1:]


@pytest.mark.parametrize("seed", range(60))
def test_chunks_cover_every_token_once(seed: int) -> None:
    lengths, slots, capacity, unit = decode_case(seed)
    chunks = plan_decode(lengths, slots, capacity, unit)
    assert chunks.shape == (capacity, 8)
    assert chunks.dtype == np.int32
    used = int(chunks_of(chunks, len(lengths)).sum())
    assert (chunks[used:, CHUNK_ROW] == -1).all()
    assert sorted(chunks[:used, CHUNK_INDEX]) == list(range(used))
    by_index = chunks[:used][np.argsort(chunks[:used, CHUNK_INDEX])]
    for row, length in enumerate(lengths):
        at = np.flatnonzero(by_index[:, CHUNK_ROW] == row)
        assert (np.diff(at) == 1).all()
        own = by_index[at]
        assert (own[:, CHUNK_SLOT] == slots[row]).all()
        assert (own[:, CHUNK_FIRST] == at[0]).all()
        assert (own[:, CHUNK_COUNT] == len(at)).all()
        tokens = [t for c in own for t in range(c[CHUNK_START], c[CHUNK_STOP])]
        assert tokens == list(range(length))


@pytest.mark.parametrize("seed", range(60))
def test_chunks_are_the_smallest_that_fit_largest_first(seed: int) -> None:
    lengths, slots, capacity, unit = decode_case(seed)
    chunks = plan_decode(lengths, slots, capacity, unit)
    size = next(
        size
        for size in range(unit, 1 << 20, unit)
        if np.maximum(-(-lengths // size), 1).sum() <= capacity
    )
    counts = np.maximum(-(-lengths // size), 1)
    assert chunks_of(chunks, len(lengths)).tolist() == counts.tolist()
    sizes = (chunks[:, CHUNK_STOP] - chunks[:, CHUNK_START])[: counts.sum()]
    assert (np.diff(sizes) <= 0).all()
    rests = sizes[sizes < size]
    assert len(rests) <= len(lengths)


@pytest.mark.parametrize("seed", range(60))
def test_chunks_of_a_window_hold_what_it_shows_once(seed: int) -> None:
    lengths, slots, capacity, unit = decode_case(seed)
    window = [1, unit - 1, unit, unit + 1, 300, 1 << 20][seed % 6]
    chunks = plan_decode(lengths, slots, capacity, unit, window)
    assert chunks.shape == (capacity, 8)
    used = chunks[chunks[:, CHUNK_ROW] >= 0]
    for row, length in enumerate(lengths):
        own = used[used[:, CHUNK_ROW] == row]
        own = own[np.argsort(own[:, CHUNK_INDEX])]
        assert (own[:, CHUNK_COUNT] == len(own)).all()
        assert (own[:, CHUNK_FIRST] == own[0, CHUNK_INDEX]).all()
        tokens = [t for c in own for t in range(c[CHUNK_START], c[CHUNK_STOP])]
        assert tokens == list(range(max(0, length - window), length))
    if window > lengths.max():
        assert chunks.tolist() == plan_decode(lengths, slots, capacity, unit).tolist()


@pytest.mark.parametrize("num_rows", [1, 3, 64, 256])
@pytest.mark.parametrize(("window", "most"), [(1, 1), (64, 1), (65, 2), (128, 2), (1 << 17, 2048)])
def test_a_window_has_no_more_room_than_it_has_units(num_rows: int, window: int, most: int) -> None:
    unbounded = decode_capacity(num_rows, 4, 132)
    assert decode_capacity(num_rows, 4, 132, window) == min(unbounded, most * num_rows)


def test_whole_chunks_come_before_rests() -> None:
    chunks = plan_decode(np.array([3, 500, 0, 70]), np.arange(4), 6, 16)
    assert chunks[:, CHUNK_ROW].tolist() == [1, 1, 1, 3, 0, 2]
    assert chunks[:, CHUNK_START].tolist() == [0, 176, 352, 0, 0, 0]
    assert chunks[:, CHUNK_INDEX].tolist() == [1, 2, 3, 5, 0, 4]
    assert chunks[:, CHUNK_FIRST].tolist() == [1, 1, 1, 5, 0, 4]
    assert chunks[:, CHUNK_COUNT].tolist() == [3, 3, 3, 1, 1, 1]
    assert chunks[:4, CHUNK_OF_ROW].tolist() == [4, 0, 5, 3]


def test_one_long_row_among_short_ones_is_spread() -> None:
    lengths = np.full(256, 90)
    lengths[100] = 32768
    chunks = plan_decode(lengths, np.arange(256), decode_capacity(256, 4, 132), 64)
    counts = chunks_of(chunks, 256)
    assert counts[100] >= 10
    assert (np.delete(counts, 100) == 1).all()


@pytest.mark.parametrize("num_rows", [1, 2, 8, 64, 256])
@pytest.mark.parametrize("kv_heads", [1, 4, 8])
def test_batches_fill_the_gpu_and_large_ones_are_not_cut_needlessly(
    num_rows: int, kv_heads: int
) -> None:
    capacity = decode_capacity(num_rows, kv_heads, 132)
    unit = decode_tiles(num_rows).unit
    chunks = plan_decode(np.full(num_rows, 32768), np.arange(num_rows), capacity, unit)
    used = chunks_of(chunks, num_rows).sum()
    assert used * kv_heads >= 0.9 * 132
    assert capacity <= num_rows + 8 * 132


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
