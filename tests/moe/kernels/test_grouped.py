"""Grouped expert GEMMs against each expert's own matrices in fp64, route by route."""

from __future__ import annotations

import pytest
import torch

from moe.base.context import make_context
from moe.base.tiles import Tiles
from moe.placement import ExpertPlacement
from tests.moe.kernels.grouped import DEVICE, check, make_ids

pytestmark = pytest.mark.interpreter


def tile(block_m: int = 16, block_n: int = 16, block_k: int = 16, swap: bool = False) -> Tiles:
    return Tiles(block_m=block_m, block_n=block_n, block_k=block_k, stages=2, swap=swap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("block_m", [16, 32, 64])
@pytest.mark.parametrize(("T", "H", "width"), [(1, 48, 24), (7, 17, 48), (13, 24, 17)])
def test_routes(T: int, H: int, width: int, block_m: int, swap: bool, dtype: torch.dtype) -> None:
    tiles = tile(block_m, 32, 16, swap), tile(block_m, 16, 32, swap)
    ids = make_ids(T, 5, 3, DEVICE)
    check(ids, E=5, H=H, width=width, tiles=tiles, dtype=dtype)


@pytest.mark.parametrize("swap", [False, True])
def test_sizes_that_tiles_divide(swap: bool) -> None:
    tiles = tile(16, 16, 16, swap), tile(16, 32, 16, swap)
    check(make_ids(9, 3, 2, DEVICE), E=3, H=64, width=32, tiles=tiles)


@pytest.mark.parametrize("T", [1, 15, 16, 17, 40])
def test_one_expert_takes_all(T: int) -> None:
    """Of several, most of which stay empty; and of one."""
    tiles = tile(swap=True), tile()
    for E, taker in ((4, 2), (1, 0)):
        ids = torch.full((T, 1), taker, dtype=torch.int32, device=DEVICE)
        check(ids, E=E, H=24, width=17, tiles=tiles)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("H", "width"), [(48, 24), (17, 40)])
def test_full_tiles_beside_nearly_empty_ones(H: int, width: int, dtype: torch.dtype) -> None:
    """Of 64 rows and of 128, with one expert of 130 routes and one of 5."""
    ids = torch.zeros(135, 1, dtype=torch.int32, device=DEVICE)
    ids[::30] = 2
    for block_m in (64, 128):
        tiles = tile(block_m, 16, 16), tile(block_m, 32, 16)
        check(ids, E=3, H=H, width=width, tiles=tiles, dtype=dtype)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_routes_of_other_ranks_are_not_touched(rank: int) -> None:
    place = ExpertPlacement(num_experts=8, num_ranks=3, rank=rank)
    ids, index = make_ids(11, 8, 4, DEVICE), place.expert_map(DEVICE)
    check(ids, E=place.num_local, H=24, width=17, tiles=(tile(), tile()), expert_map_E=index)


def test_no_local_route_writes_nothing() -> None:
    place = ExpertPlacement(num_experts=8, num_ranks=2, rank=1)
    index = place.expert_map(DEVICE)
    ids = torch.randint(-1, 4, (6, 3), dtype=torch.int32, device=DEVICE)
    check(ids, E=4, H=24, width=17, tiles=(tile(), tile()), expert_map_E=index)


@pytest.mark.parametrize("swap", [False, True])
def test_entries_of_no_expert_are_passed_over(swap: bool) -> None:
    tiles = tile(swap=swap), tile(swap=swap)
    check(make_ids(9, 4, 2, DEVICE), E=4, H=24, width=17, tiles=tiles, gaps=True)


def test_many_routes() -> None:
    """Their table has gaps of its own; few are local, for the interpreter's sake."""
    ids = torch.full((684, 3), -1, dtype=torch.int32, device=DEVICE)
    ids[::57, 1] = torch.randint(3, (12,), dtype=torch.int32, device=DEVICE)
    check(ids, E=3, H=24, width=17, tiles=(tile(), tile()))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("T", [1, 2, 3, 4, 8, 64, 256, 1000])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_real_shapes(T: int, num_ranks: int, dtype: torch.dtype) -> None:
    """Qwen3-30B-A3B, on the tiles shipped for it or guessed; those of one token are vectors."""
    place = ExpertPlacement(num_experts=128, num_ranks=num_ranks, rank=num_ranks - 1)
    context = make_context(torch.device("cuda"), dtype)
    tiles = context.tiles.experts(place.num_local, 768, 2048, T, T * 8)
    check(
        make_ids(T, 128, 8, "cuda"), E=place.num_local, H=2048, width=768,
        tiles=(tiles.gate_up, tiles.down), dtype=dtype, device="cuda", pdl=context.pdl,
        expert_map_E=None if num_ranks == 1 else place.expert_map("cuda"),
    )  # fmt: skip
