"""Tiles cut along their contexts: every query meets every key before it once, within the limits."""

import numpy as np
import pytest

from workers.attention.plan import AttentionKind, plan_prefill
from workers.attention.prefill_split import (
    COUNT,
    FIRST,
    FIRST_SPLIT,
    KEY_START,
    KEY_STOP,
    NUM_SPLITS,
    POSITION,
    SPLIT,
    SPLIT_FIELDS,
    max_splits,
    prefill_fill,
    split_tiles,
    tile_columns,
)
from workers.rows import StepRows

FILL = prefill_fill(4, 132)


def rows_of(*rows: tuple[int, int]) -> StepRows:
    """Of (position, tokens), in slots of their own."""
    positions, num_tokens = np.array(rows, dtype=np.int32).reshape(-1, 2).T
    return StepRows(
        slots=np.arange(len(rows), dtype=np.int32),
        positions=positions,
        num_tokens=num_tokens,
        first_token=np.cumsum(num_tokens, dtype=np.int32) - num_tokens,
        draws=np.ones(len(rows), dtype=bool),
        lengths=positions + num_tokens,
    )


def plan_of(rows: StepRows, tile_tokens: int) -> np.ndarray:
    return plan_prefill(rows.num_tokens, rows.positions, rows.first_token, rows.slots, tile_tokens)


def columns_of(rows: StepRows, shape: tuple[int, int] | None = None) -> np.ndarray:
    """As 32 query heads of 4 key heads have it on 132 multiprocessors: tiles of 8 tokens."""
    return tile_columns(
        rows, 0, kind=AttentionKind(None, 32), kv_heads=4, num_cores=132, shape=shape
    )


@pytest.mark.parametrize("seed", range(60))
def test_entries_cover_every_query_and_key_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 9))
    positions = rng.integers(0, rng.choice([2, 300, 3000]), size)
    rows = rows_of(*zip(positions, rng.integers(1, 40, size), strict=True))
    fill, unit = int(rng.choice([1, 7, 66])), int(rng.choice([1, 16, 64]))
    tiles = plan_of(rows, int(rng.choice([1, 5, 16])))
    entries = split_tiles(tiles, fill, unit)
    assert entries.dtype == np.int32
    assert entries.shape[1] == SPLIT_FIELDS
    assert len(entries) <= len(tiles) + fill
    sizes = entries[:, KEY_STOP] - entries[:, KEY_START]
    assert (sizes > 0).all()
    assert (np.diff(sizes) <= 0).all()
    # A part that began behind a query would have no key for it.
    assert (entries[:, KEY_START] <= entries[:, POSITION]).all()
    used = entries[entries[:, NUM_SPLITS] > 0, SPLIT]
    assert sorted(used) == list(range(len(used)))
    assert len(used) <= 2 * fill
    for tile in tiles:
        own = entries[(entries[:, :4] == tile).all(1)]
        own = own[np.argsort(own[:, KEY_START])]
        assert own[0, KEY_START] == 0
        assert own[-1, KEY_STOP] == tile[POSITION] + tile[COUNT]
        assert (own[1:, KEY_START] == own[:-1, KEY_STOP]).all()
        assert (own[1:, KEY_START] % unit == 0).all()
        assert (own[:, NUM_SPLITS] == (len(own) if len(own) > 1 else 0)).all()
        if len(own) > 1:
            assert (own[:, FIRST_SPLIT] == own[0, SPLIT]).all()
            assert (np.diff(own[:, SPLIT]) == 1).all()


def longest_end(entries: np.ndarray, fill: int) -> int:
    """Keys until the last of `fill` programs ends, each taking the next entry when it is free."""
    ends = np.zeros(fill, dtype=np.int64)
    for start, stop in entries[:, [KEY_START, KEY_STOP]]:
        ends[np.argmin(ends)] += stop - start
    return int(ends.max())


@pytest.mark.parametrize("tokens", [8, 64, 128, 264])
@pytest.mark.parametrize("decodes", [0, 8, 64])
def test_a_chunk_deep_in_a_context_is_spread(tokens: int, decodes: int) -> None:
    rows = rows_of((30_000, tokens), *[(1000, 1)] * decodes)
    entries = columns_of(rows)
    keys = plan_of(rows, 8)[:, [COUNT, POSITION]].sum()
    assert longest_end(entries, FILL) <= max(1.35 * keys / FILL, 2048)
    short = entries[entries[:, FIRST] >= tokens]
    assert not short[:, NUM_SPLITS].any()


def test_short_contexts_and_no_rows_are_left_whole() -> None:
    assert not columns_of(rows_of((900, 64), (0, 100), (1000, 1)))[:, NUM_SPLITS].any()
    assert columns_of(rows_of()).shape == (0, SPLIT_FIELDS)


def test_steps_of_many_tokens_have_plain_tiles() -> None:
    assert columns_of(rows_of((30_000, 527))).shape[1] == SPLIT_FIELDS
    assert columns_of(rows_of((30_000, 528))).shape == (66, 4)
    many = columns_of(rows_of((30_000, 5000)))
    assert many.tolist() == plan_of(rows_of((30_000, 5000)), 16).tolist()


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 32])
def test_tiles_of_prompts_are_split_by_the_number_of_tokens_alone(kv_heads: int) -> None:
    """Never again beyond the first step that is not: warm-up runs the ends of each range."""
    widths = [
        tile_columns(
            rows_of((0, tokens)),
            0,
            kind=AttentionKind(None, 32),
            kv_heads=kv_heads,
            num_cores=132,
            shape=None,
        ).shape[1]
        for tokens in (1, *range(50, 5000, 50))
    ]
    assert widths[0] == SPLIT_FIELDS
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("tokens", [16, 64, 256, 512, 768])
def test_a_captured_shape_has_as_many_entries_whatever_its_rows(tokens: int) -> None:
    sizes = set()
    for chunk in (1, 9, tokens // 2, tokens - 7, tokens):
        for slots in (1, 8, 256):
            ones = min(slots - 1, tokens - chunk)
            columns = columns_of(rows_of((30_000, chunk), *[(4095, 1)] * ones), (tokens, 256))
            assert (columns[:, COUNT].sum()) >= chunk + ones
            sizes.add(columns.shape)
            if columns.shape[1] == SPLIT_FIELDS:
                assert columns[:, NUM_SPLITS].astype(bool).sum() <= max_splits(4, 132)
    sizes.add(columns_of(rows_of(), (tokens, 256)).shape)
    assert len(sizes) == 1


@pytest.mark.parametrize("tokens", [16, 256, 768, 5000])
def test_tiles_with_a_window_are_never_split(tokens: int) -> None:
    kind = AttentionKind(100, 32)
    sizes = set()
    for chunk in (1, tokens // 2, tokens):
        rows = rows_of((30_000, chunk), *[(4095, 1)] * min(7, tokens - chunk))
        plain = tile_columns(rows, 0, kind=kind, kv_heads=4, num_cores=132, shape=None)
        padded = tile_columns(rows, 0, kind=kind, kv_heads=4, num_cores=132, shape=(tokens, 8))
        assert padded[: len(plain), COUNT].sum() == rows.num_tokens.sum()
        assert not padded[len(plain) :].any()
        sizes.add(padded.shape)
    assert len(sizes) == 1
    assert sizes.pop()[1] == 4
