"""The attention benchmark launches what it says, and counts what is read."""

from __future__ import annotations

import pytest
import torch

from benchmarks.attention import Case, Heads, prompts
from tests.workers.attention.test_kernels import assert_close, oracle
from workers.attention.kv_cache import FP8
from workers.attention.plan import DecodeTiles, PrefillTiles

HEADS = Heads(4, 2, 8)
CPU = torch.device("cpu")


def test_prompts_are_as_long_as_may_be() -> None:
    assert prompts(2500, 7) == [(7, 1024), (7, 1024), (7, 452)]


def test_counts() -> None:
    case = Case("", [(3, 2), (0, 4)], HEADS, CPU)
    assert case.cached_bytes(torch.bfloat16) == 9 * 2 * 2 * 8 * 2
    assert case.cached_bytes(FP8) == 9 * 2 * 2 * (8 + 2)
    assert case.products() == 2 * 4 * 8 * (4 + 5 + 1 + 2 + 3 + 4)


@pytest.mark.parametrize("rows", [[(20, 1), (3, 1)], [(3, 2), (0, 4)]])
def test_candidates_go_with_the_plan_of_the_default(rows: list[tuple[int, int]]) -> None:
    case = Case("", rows, HEADS, CPU)
    default = case.default_tiles(FP8)
    found = list(case.candidates())
    assert len(set(found)) == len(found) > 10
    for tiles in found:
        assert tiles.max_registers is None or tiles.num_warps * 32 * tiles.max_registers <= 65536
        if isinstance(tiles, PrefillTiles):
            assert isinstance(default, PrefillTiles)
            assert (tiles.block_m, tiles.unit) == (default.block_m, default.unit)
            assert tiles.unit is None or tiles.unit % tiles.block_n == 0
        else:
            assert isinstance(default, DecodeTiles)
            assert (tiles.unit, tiles.join) == (default.unit, default.join)


@pytest.mark.interpreter
@pytest.mark.parametrize("rows", [[(40, 1), (3, 1)], [(30, 5), (0, 20)]], ids=["decode", "prefill"])
def test_calls_attend(rows: list[tuple[int, int]]) -> None:
    """The second launch, of the second cache, is what is left in the output."""
    case = Case("", rows, HEADS, CPU)
    layers = case.layers(FP8, 2)
    for call in case.calls(layers, case.default_tiles(FP8), num_cores=2):
        call()
    for row, (first, count) in enumerate(
        zip(case.rows.first_token, case.rows.num_tokens, strict=True)
    ):
        k, v = layers[1].read(case.tables[row].long(), torch.float64)
        k_LKD, v_LKD = (each.flatten(0, 1)[: case.rows.lengths[row]] for each in (k, v))
        expected = oracle(case.q_TND[first : first + count], k_LKD, v_LKD)
        assert_close(case.out_TND[first : first + count], expected)
