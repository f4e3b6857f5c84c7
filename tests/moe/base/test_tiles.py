"""Which tiles a shape gets, measured or guessed, and the files they stand in."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.base import tiles as tiles_module
from moe.base.tile_files import load_book, read_tables, shipped_file, user_file, write_tables
from moe.base.tiles import (
    FP8_NAME,
    INT4_NAME,
    MANY_ROWS,
    ExpertTiles,
    Tiles,
    TileTable,
    experts_key,
    linear_key,
)

H200 = {"device_name": "NVIDIA H200", "triton_version": "3.6.0"}
SHIPPED = Path(tiles_module.__file__).parent / "tuned"
H200_SHARED = 227 * 1024  # bytes a block may have
OTHER_SHARED = (99 * 1024, 163 * 1024)  # of sm_89 and sm_80


def pair(block_m: int, **changes: Any) -> ExpertTiles:
    tiles = Tiles(block_m=block_m, block_n=32, block_k=64, **changes)
    return ExpertTiles(gate_up=tiles, down=tiles)


def shared_bytes(
    tiles: Tiles | None, matrices: int, item_size: int, weight_size: float | None = None
) -> float:
    """Of the stages in flight: rows and `matrices` tiles of weights each."""
    if tiles is None or tiles.block_m == 1:  # these use none for their tiles
        return 0
    weight_size = weight_size or item_size
    row = item_size * tiles.block_m + weight_size * matrices * tiles.block_n
    return tiles.stages * row * tiles.block_k


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No test sees, or writes, the tiles of whoever runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def make_book(**tables: Any) -> TileTable:
    return TileTable(dtype="bfloat16", item_size=2, shared_bytes=H200_SHARED, **tables)


def load_bf16(device_name: str, triton_version: str) -> TileTable:
    return load_book(
        device_name=device_name, triton_version=triton_version,
        dtype="bfloat16", item_size=2, shared_bytes=H200_SHARED,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "block_m"), [(1, 1), (4, 1), (5, 16), (32, 16), (33, 64), (512, 64), (9999, 64)]
)
def test_an_entry_holds_up_to_its_number_and_the_last_one_beyond(tokens: int, block_m: int) -> None:
    table = {32: pair(16), 4: pair(1), 512: pair(64)}
    book = make_book(experts={experts_key(8, 24, 48, "bfloat16"): table})
    assert book.experts(8, 24, 48, tokens, 8 * tokens) == pair(block_m)


def test_a_dense_entry_may_be_the_library() -> None:
    tiles = Tiles(block_m=16, block_n=32, block_k=64)
    book = make_book(linear={linear_key(24, 48, "bfloat16"): {8: tiles, 64: None}})
    assert [book.linear(24, 48, tokens) for tokens in (1, 8, 9, 64, 65)] == [tiles, tiles] + [
        None
    ] * 3


def test_entries_of_another_shape_or_type_are_not_taken() -> None:
    table = {1: pair(64, warps=1)}
    book = make_book(experts={experts_key(8, 24, 48, "float32"): table})
    for shape in ((8, 24, 48), (8, 48, 24), (4, 24, 48)):
        assert book.experts(*shape, 1, 1) != table[1]


def test_a_guess_is_said_once_a_shape(caplog: pytest.LogCaptureFixture) -> None:
    book = make_book(experts={experts_key(8, 24, 48, "bfloat16"): {1: pair(16)}})
    with caplog.at_level(logging.INFO, "moe.base.tiles"):
        book.experts(8, 24, 48, 100, 100)
        assert not caplog.records
        for tokens in (1, 7, 5000, 1):
            book.experts(8, 24, 64, tokens, 2 * tokens)
            book.experts(9, 24, 64, tokens, 2 * tokens)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "E=8 I=24 H=64 bfloat16" in said[0]
    assert "E=9 I=24 H=64 bfloat16" in said[1]


SIZES = st.one_of(st.integers(1, 300), st.sampled_from([768, 1536, 2048, 4096, 5120, 12288, 16384]))


@pytest.mark.slow
@given(
    num_experts=st.integers(1, 512),
    width=SIZES,
    hidden=SIZES,
    tokens=st.integers(0, 20000),
    k=st.integers(1, 10),
    item_size=st.sampled_from([2, 4]),
    shared=st.sampled_from([H200_SHARED, *OTHER_SHARED]),
)
@settings(max_examples=500, deadline=None)
def test_what_is_guessed_runs(
    num_experts: int, width: int, hidden: int, tokens: int, k: int, item_size: int, shared: int
) -> None:
    """Powers of two that tl.dot takes, within shared memory, for any shape."""
    book = TileTable(dtype="some", item_size=item_size, shared_bytes=shared)
    experts = book.experts(num_experts, width, hidden, tokens, tokens * k)
    narrow, int4 = (
        book.experts(num_experts, width, hidden, tokens, tokens * k, weights=name)
        for name in (FP8_NAME, INT4_NAME)
    )
    guesses = [
        (experts.gate_up, 2, item_size),
        (experts.down, 1, item_size),
        (book.linear(width, hidden, tokens), 1, item_size),
        (book.linear(width, hidden, tokens, library=False), 1, item_size),
        (narrow.gate_up, 2, 1),
        (narrow.down, 1, 1),
        (book.linear(width, hidden, tokens, weights=FP8_NAME), 1, 1),
        (int4.gate_up, 2, 0.5),
        (int4.down, 1, 0.5),
        (book.linear(width, hidden, tokens, weights=INT4_NAME), 1, 0.5),
    ]
    assert all(tiles is not None for tiles, _, _ in guesses[-7:])
    for tiles, matrices, weight_size in guesses:
        if tiles is None:
            continue
        assert shared_bytes(tiles, matrices, item_size, weight_size) <= shared
        for block in (tiles.block_m, tiles.block_n, tiles.block_k):
            assert block & (block - 1) == 0
        if tiles.block_m > 1:
            assert min(tiles.block_m, tiles.block_n, tiles.block_k) >= 16
        assert tiles.stages >= 1
        # Parts of the depth are not empty.
        assert (tiles.splits - 1) * -(-hidden // tiles.splits) < hidden or tiles.splits == 1
    vector = book.linear(width, hidden, tokens)
    if vector is not None and vector.block_m == 1:
        assert tokens == 1


@pytest.mark.parametrize("weights", [None, FP8_NAME])
@given(outputs=st.integers(1, 512), inputs=SIZES, tokens=st.integers(1, 20000))
@settings(max_examples=300, deadline=None)
def test_a_warm_up_of_powers_of_two_sees_the_most_parts(
    weights: str | None, outputs: int, inputs: int, tokens: int
) -> None:
    """A router's buffer, grown by them and the largest step, holds the parts of all others."""
    book = make_book()

    def rows(count: int) -> int:
        tiles = book.linear(outputs, inputs, count, weights=weights, library=False)
        assert tiles is not None
        return tiles.splits * count

    powers = [1 << n for n in range(tokens.bit_length())]
    room = max(map(rows, [*powers, tokens]))
    assert all(rows(count) <= room for count in range(1, tokens, max(1, tokens // 50)))


def test_weights_of_another_type_have_tables_of_their_own() -> None:
    own, other = pair(16), pair(32)
    tiles = Tiles(block_m=16, block_n=16, block_k=32)
    book = make_book(
        experts={"E=8 I=24 H=64 bfloat16": {1: own}, f"E=8 I=24 H=64 {FP8_NAME}": {1: other}},
        linear={"N=8 K=64 bfloat16": {1: None}, f"N=8 K=64 {FP8_NAME}": {1: tiles}},
    )
    assert book.experts(8, 24, 64, 5, 10) == own
    assert book.experts(8, 24, 64, 5, 10, weights=FP8_NAME) == other
    assert book.linear(8, 64, 5) is None
    assert book.linear(8, 64, 5, weights=FP8_NAME) == tiles


def test_tables_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    first = {
        "experts": {"a": {1: pair(1), 64: pair(16, swap=True, stages=2)}},
        "linear": {"c": {8: Tiles(block_m=16, block_n=32, block_k=64, splits=4), 64: None}},
    }
    write_tables(path, first)
    assert read_tables(path) == first
    # A second measurement replaces its own keys and keeps the others.
    write_tables(path, {"experts": {"a": {2: pair(64)}, "b": {1: pair(32)}}})
    assert read_tables(path) == {
        "experts": {"a": {2: pair(64)}, "b": {1: pair(32)}},
        "linear": first["linear"],
    }


GOOD = {"gate_up": {"block_m": 16, "block_n": 16, "block_k": 16}}
GOOD["down"] = GOOD["gate_up"]


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"experts": {}}',
        json.dumps({"experts": [], "linear": {}}),
        json.dumps({"experts": {"a": {"one": GOOD}}, "linear": {}}),
        json.dumps({"experts": {"a": {"1": {"gate_up": GOOD["down"]}}}, "linear": {}}),
        json.dumps({"experts": {}, "linear": {"a": {"1": {"block_m": 16}}}}),
        json.dumps({"experts": {}, "linear": {"a": {"1": {**GOOD["down"], "depth": 3}}}}),
        json.dumps(
            {
                "experts": {"a": {"1": {**GOOD, "down": {**GOOD["down"], "block_m": 32}}}},
                "linear": {},
            }
        ),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(damaged: str, home: Path) -> None:
    path = user_file(**H200)
    path.parent.mkdir(parents=True)
    path.write_text(damaged, encoding="utf-8")
    with pytest.raises(ValueError, match="delete it") as error:
        load_bf16(**H200)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_bytes_that_are_no_text_are_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"file\.json"):
        read_tables(path)


def test_the_users_entries_win_over_the_shipped_ones() -> None:
    shipped = load_bf16(**H200).experts_tables
    key = experts_key(128, 768, 2048, "bfloat16")
    own = {key: {1: pair(32)}, experts_key(8, 24, 48, "bfloat16"): {1: pair(64)}}
    assert key in shipped
    write_tables(user_file(**H200), {"experts": own})
    assert load_bf16(**H200).experts_tables == shipped | own


def test_another_triton_takes_the_shipped_file_and_another_device_none() -> None:
    shipped = load_bf16(**H200)
    other = load_bf16("NVIDIA H200", "99.0")
    assert shipped.experts_tables
    assert other.experts_tables == shipped.experts_tables
    assert other.linear_tables == shipped.linear_tables
    for name in ("NVIDIA H2", "Abacus"):
        book = load_bf16(name, "3.6.0")
        assert book.experts_tables == book.linear_tables == {}


@pytest.mark.parametrize("version", ["3.6.0", "99.0"])
def test_a_card_of_the_same_chip_has_what_its_own_file_lacks(version: str) -> None:
    names = "NVIDIA H100 80GB HBM3", "NVIDIA H200"
    files = {name: read_tables(shipped_file(name, "3.6.0"))["experts"] for name in names}
    for name, other in (names, names[::-1]):
        assert set(files[other]) - set(files[name])
        assert load_bf16(name, version).experts_tables == files[other] | files[name]
    third = load_bf16("NVIDIA GH200 480GB", version).experts_tables
    assert set(third) == set(files[names[0]]) | set(files[names[1]])


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_shipped_parses_and_fits(path: Path) -> None:
    tables = read_tables(path)
    item_size = {"bfloat16": 2, "float16": 2, "float32": 4}
    assert tables["experts"]
    for kind in ("experts", "linear"):
        for key, table in tables[kind].items():
            assert table, key
            for tokens, entry in table.items():
                assert tokens >= 1
                cuts = [(entry, 1)]
                if isinstance(entry, ExpertTiles):
                    cuts = [(entry.gate_up, 2), (entry.down, 1)]
                for tiles, matrices in cuts:
                    dtype = key.rpartition(" ")[2]
                    if dtype == FP8_NAME:
                        # Steps of many tokens have activations of eight bits too.
                        is_many = tokens >= MANY_ROWS and tiles.block_m >= 64 and not tiles.swap
                        size = shared_bytes(tiles, matrices, 1 if is_many else 2, 1)
                    elif dtype == INT4_NAME:
                        size = shared_bytes(tiles, matrices, 2, 0.5)
                    else:
                        size = shared_bytes(tiles, matrices, item_size[dtype])
                    assert size <= H200_SHARED, (key, tokens)


def test_what_is_shipped_serves_one_row_vectors_only_to_one_row() -> None:
    """A matrix-vector entry of a dense GEMM takes no second row."""
    for path in SHIPPED.glob("*.json"):
        for key, table in read_tables(path)["linear"].items():
            ones = [n for n, tiles in table.items() if tiles is not None and tiles.block_m == 1]
            assert ones in ([], [1]), (path.name, key)
            assert ones != [max(table)], f"{key}: more rows than one would get it"
