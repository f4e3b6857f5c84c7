"""Which tiles of a GEMM stay, by made-up times of steps."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks import tune_steps
from benchmarks.gemm_shapes import ExpertShape, LinearShape
from benchmarks.tiles.tasks import Task
from benchmarks.tune_steps import settle
from moe.base.tiles import ExpertTiles, Tiles, TileTable

TILES = Tiles(block_m=16, block_n=64, block_k=128)
DTYPE = "bfloat16"
QKV = LinearShape(name="qkv", outputs=512, inputs=256)


def table() -> TileTable:
    other = {QKV.key(DTYPE): {64: TILES}}
    return TileTable(dtype=DTYPE, item_size=2, shared_bytes=232448, linear=other)


def narrower(tiles: Tiles) -> Tiles:
    return dataclasses.replace(tiles, block_n=tiles.block_n // 2)


@pytest.mark.parametrize(
    ("taken", "stays"),
    [
        ({TILES: 2.0, narrower(TILES): 1.9, None: 1.95}, narrower(TILES)),
        ({TILES: 2.0, narrower(TILES): 1.999, None: 2.1}, TILES),  # by no more than chance
        ({TILES: 2.0, narrower(TILES): None, None: 1.9}, None),  # the device refuses one
        ({TILES: None, narrower(TILES): 1.9, None: 2.0}, narrower(TILES)),
    ],
)
def test_the_fastest_step_keeps_its_tiles(
    taken: dict[Tiles | None, float | None], stays: Tiles | None
) -> None:
    task = Task(
        shape=QKV, tokens=8, guess=TILES, current=TILES,
        candidates={"linear": [TILES, narrower(TILES), None]},
    )  # fmt: skip
    book = table()
    entry, fastest, before = settle(
        task, book, DTYPE, lambda: taken[book.linear_tables[QKV.key(DTYPE)][8]]
    )
    assert entry == stays
    assert fastest == taken[stays]
    assert before == (taken[TILES] or float("inf"))
    assert book.linear_tables[QKV.key(DTYPE)] == {8: stays, 64: TILES}


def test_experts_change_one_gemm_after_the_other() -> None:
    """And never to tiles of other rows than the other GEMM has."""
    shape = ExpertShape(num_experts=8, num_local=8, top_k=2, width=256, hidden=256)
    both = ExpertTiles(gate_up=TILES, down=TILES)
    other_rows = dataclasses.replace(TILES, block_m=32)
    several = [other_rows, narrower(TILES)]
    task = Task(
        shape=shape, tokens=8, guess=both, current=both,
        candidates={"gate_up": [*several], "down": [*several]},
    )  # fmt: skip
    book, seen = table(), []

    def measure() -> float:
        seen.append(book.experts_tables[shape.key(DTYPE)][8])
        return 2.0 - 0.1 * (seen[-1].gate_up != TILES) - 0.1 * (seen[-1].down != TILES)

    entry, fastest, before = settle(task, book, DTYPE, measure)
    assert entry == ExpertTiles(gate_up=narrower(TILES), down=narrower(TILES))
    assert (fastest, before) == (pytest.approx(1.8), 2.0)
    assert len(seen) == 3


def test_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        tune_steps.main(["benchmarks/configs/qwen3-30b-a3b"])
