"""Expert GEMMs of a few tokens against each expert's own matrices in fp64, route by route.

Real shapes are among those of test_grouped.
"""

from __future__ import annotations

import pytest
import torch

from moe.base.tiles import Tiles
from moe.placement import ExpertPlacement
from tests.moe.fp8 import ROWS
from tests.moe.kernels.grouped import DEVICE, check, make_ids

pytestmark = pytest.mark.interpreter

TILES = Tiles(block_m=1, block_n=8, block_k=32), Tiles(block_m=1, block_n=16, block_k=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("T", "H", "width"), [(1, 48, 24), (4, 17, 48), (3, 24, 17), (2, 64, 32), (1, 1, 1)]
)
def test_routes(T: int, H: int, width: int, dtype: torch.dtype) -> None:
    """(2, 64, 32): sizes that tiles divide."""
    check(make_ids(T, 5, 3, DEVICE), E=5, H=H, width=width, tiles=TILES, dtype=dtype)


def test_one_expert_and_depth_in_one_piece() -> None:
    tiles = Tiles(block_m=1, block_n=2, block_k=64), Tiles(block_m=1, block_n=32, block_k=32)
    ids = torch.zeros(3, 1, dtype=torch.int32, device=DEVICE)
    check(ids, E=1, H=48, width=24, tiles=tiles)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_routes_of_other_ranks_are_not_touched(rank: int) -> None:
    place = ExpertPlacement(num_experts=8, num_ranks=3, rank=rank)
    index = place.expert_map(DEVICE)
    ids = make_ids(4, 8, 4, DEVICE)
    check(ids, E=place.num_local, H=24, width=17, tiles=TILES, expert_map_E=index)


@pytest.mark.parametrize("with_map", [False, True])
def test_no_route_writes_nothing(with_map: bool) -> None:
    place = ExpertPlacement(num_experts=8, num_ranks=2, rank=1)
    index = place.expert_map(DEVICE) if with_map else None
    ids = torch.full((2, 3), -1, dtype=torch.int32, device=DEVICE)
    if with_map:
        ids[0] = torch.tensor([0, 3, 2])
    check(ids, E=4, H=24, width=17, tiles=TILES, expert_map_E=index)


@pytest.mark.parametrize(
    ("block", "size", "depth", "dtype"),
    [
        ((16, 16), 32, 64, torch.float16),
        ((32, 64), 64, 16, torch.float32),
        ((48, 96), 192, 256, torch.float32),
        ((128, 128), 128, 64, torch.float16),
        ((128, 128), 256, 512, torch.float32),
        (ROWS, 24, 16, torch.float16),
    ],
    ids=str,
)
def test_weights_of_eight_bits(
    block: tuple[int, int], size: int, depth: int, dtype: torch.dtype
) -> None:
    """Depths of less than a block of scales, of one and of several, and more than there is."""
    tiles = Tiles(block_m=1, block_n=8, block_k=depth), Tiles(block_m=1, block_n=32, block_k=depth)
    ids = make_ids(2, 3, 2, DEVICE)
    check(ids, E=3, H=size, width=size, tiles=tiles, dtype=dtype, block=block)


def test_weights_of_eight_bits_of_other_ranks() -> None:
    place = ExpertPlacement(num_experts=8, num_ranks=3, rank=1)
    index = place.expert_map(DEVICE)
    check(make_ids(4, 8, 4, DEVICE), E=place.num_local, H=64, width=32, tiles=TILES,
          expert_map_E=index, block=(32, 32))  # fmt: skip
