"""Grouped expert GEMMs against each expert's own matrices in fp64, route by route."""

from __future__ import annotations

import math
import random

import pytest
import torch

from moe.base.context import make_context
from moe.base.tiles import FP8_NAME, Tiles
from moe.placement import ExpertPlacement
from tests.moe.fp8 import ROWS
from tests.moe.kernels.grouped import DEVICE, check, make_ids, random_tiles

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


@pytest.mark.parametrize(
    ("block", "H", "width", "swap", "dtype"),
    [
        ((16, 16), 48, 32, False, torch.float16),
        ((32, 64), 128, 64, True, torch.float32),
        ((48, 96), 96, 96, False, torch.float32),
        ((128, 128), 128, 128, True, torch.float16),
        (ROWS, 40, 24, False, torch.float32),
        (ROWS, 64, 17, True, torch.float16),
    ],
    ids=str,
)
def test_weights_of_eight_bits(
    block: tuple[int, int], H: int, width: int, swap: bool, dtype: torch.dtype
) -> None:
    """Tiles that lie within a block of scales, that fill one, and that must be cut to one."""
    tiles = tile(16, 32, 32, swap), tile(16, 128, 64, swap)
    check(make_ids(7, 3, 2, DEVICE), E=3, H=H, width=width, tiles=tiles, dtype=dtype, block=block)


def test_weights_of_eight_bits_of_other_ranks_and_tiles_of_no_expert() -> None:
    place = ExpertPlacement(num_experts=8, num_ranks=3, rank=1)
    ids, index = make_ids(11, 8, 4, DEVICE), place.expert_map(DEVICE)
    tiles = tile(64, 16, 16), tile(64, 16, 16)
    check(ids, E=place.num_local, H=64, width=32, tiles=tiles, expert_map_E=index,
          gaps=True, block=(32, 32))  # fmt: skip


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


@pytest.mark.gpu
@pytest.mark.parametrize("T", [40, 700])
def test_experts_too_large_for_the_cache(T: int) -> None:
    """Whose tiles take blocks of columns together."""
    context = make_context(torch.device("cuda"), torch.bfloat16)
    tiles = context.tiles.experts(3, 2048, 4096, T, T * 2)
    check(
        make_ids(T, 3, 2, "cuda"), E=3, H=4096, width=2048, tiles=(tiles.gate_up, tiles.down),
        dtype=torch.bfloat16, device="cuda", pdl=context.pdl,
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("block", [(128, 128), (64, 32), ROWS], ids=str)
@pytest.mark.parametrize("T", [1, 2, 3, 4, 8, 16, 64, 256, 1000])
def test_real_shapes_of_eight_bits(T: int, block: tuple[int, int]) -> None:
    """As above; all of a batch and half of it."""
    context = make_context(torch.device("cuda"), torch.bfloat16)
    for num_ranks in (1, 2):
        place = ExpertPlacement(num_experts=128, num_ranks=num_ranks, rank=num_ranks - 1)
        tiles = context.tiles.experts(place.num_local, 768, 2048, T, T * 8, weights=FP8_NAME)
        check(
            make_ids(T, 128, 8, "cuda"), E=place.num_local, H=2048, width=768,
            tiles=(tiles.gate_up, tiles.down), dtype=torch.bfloat16, device="cuda",
            pdl=context.pdl, block=block,
            expert_map_E=None if num_ranks == 1 else place.expert_map("cuda"),
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(30))
def test_random_shapes_of_eight_bits(seed: int) -> None:
    """Of sizes, blocks and tiles that a model, a layout or a tune may ask for."""
    draw = random.Random(seed)
    block = draw.choice([(128, 128), (128, 128), (64, 128), (32, 64), (16, 16), (96, 48), ROWS])
    unit = draw.choice([17, 64, 96]) if block == ROWS else math.lcm(*block)
    H, width = draw.randint(1, 12) * unit, draw.randint(1, 8) * unit
    E, T = draw.randint(1, 9), draw.randint(1, 90)
    block_m = draw.choice([1, 16, 16, 32, 64, 128])
    tiles = random_tiles(draw, block_m, [32, 64, 128])
    ids = make_ids(T, E, min(E, draw.randint(1, 8)), "cuda")
    torch.manual_seed(seed)
    check(
        ids, E=E, H=H, width=width, tiles=tiles, dtype=torch.bfloat16,
        device="cuda", pdl=draw.choice([False, True]), block=block,
    )  # fmt: skip
