"""Expert GEMMs over weights of four bits against each expert's own matrices in fp64."""

from __future__ import annotations

import random

import pytest
import torch

from moe.base.context import make_context
from moe.base.int4_format import Int4Format
from moe.base.tiles import INT4_NAME, Tiles
from moe.placement import ExpertPlacement
from tests.moe.kernels.grouped import DEVICE, check, make_ids, random_tiles

pytestmark = pytest.mark.interpreter

FORMATS = [
    Int4Format(group=32),
    Int4Format(group=64, zero_points=True),
    Int4Format(group=128, scale_type="bfloat16"),
    Int4Format(group=None, scale_type="float32"),
    Int4Format(group=None, zero_points=True),
]
VECTORS = Tiles(block_m=1, block_n=8, block_k=64), Tiles(block_m=1, block_n=4, block_k=32)


def tile(block_m: int = 16, block_n: int = 16, block_k: int = 32, swap: bool = False) -> Tiles:
    return Tiles(block_m=block_m, block_n=block_n, block_k=block_k, stages=2, swap=swap)


@pytest.mark.parametrize("int4", FORMATS, ids=lambda int4: int4.label)
@pytest.mark.parametrize(("swap", "dtype"), [(False, torch.float32), (True, torch.float16)])
def test_tiles(swap: bool, int4: Int4Format, dtype: torch.dtype) -> None:
    """Depths of a part of a group, of one, and of several, which are cut; more columns than tiles
    and fewer."""
    sizes = {"H": 256, "width": 128} if int4.group == 128 else {"H": 192, "width": 64}
    tiles = tile(16, 32, 64, swap), tile(16, 128, 128, swap)
    check(make_ids(7, 3, 2, DEVICE), E=3, tiles=tiles, dtype=dtype, int4=int4, **sizes)


@pytest.mark.parametrize("int4", FORMATS, ids=lambda int4: int4.label)
@pytest.mark.parametrize(
    ("depth", "dtype"), [(16, torch.float32), (64, torch.float16), (512, torch.float32)]
)
def test_vectors(depth: int, int4: Int4Format, dtype: torch.dtype) -> None:
    """Depths of less than what is packed together, of several groups, and more than there is."""
    sizes = {"H": 256, "width": 128} if int4.group == 128 else {"H": 192, "width": 64}
    tiles = Tiles(block_m=1, block_n=8, block_k=depth), Tiles(block_m=1, block_n=32, block_k=depth)
    check(make_ids(2, 3, 2, DEVICE), E=3, tiles=tiles, dtype=dtype, int4=int4, **sizes)


UNEVEN_TILES = (tile(64, 32, 32), tile(64, 16, 64, swap=True))


@pytest.mark.parametrize(
    ("tokens", "tiles"),
    [
        pytest.param(2, VECTORS, marks=pytest.mark.grid),
        pytest.param(5, VECTORS, marks=pytest.mark.grid),
        (5, UNEVEN_TILES),
    ],
)
def test_sizes_that_no_tile_divides(tokens: int, tiles: tuple[Tiles, Tiles]) -> None:
    for int4 in (Int4Format(group=32, zero_points=True), Int4Format(group=None)):
        check(make_ids(tokens, 4, 3, DEVICE), E=4, H=160, width=96, tiles=tiles, int4=int4)


@pytest.mark.parametrize("tiles", [VECTORS, (tile(), tile(swap=True))])
def test_routes_of_other_ranks_are_not_touched(tiles: tuple[Tiles, Tiles]) -> None:
    place = ExpertPlacement(num_experts=8, num_ranks=3, rank=1)
    ids, index = make_ids(4, 8, 4, DEVICE), place.expert_map(DEVICE)
    check(ids, E=place.num_local, H=64, width=32, tiles=tiles, expert_map_E=index,
          gaps=tiles[0].block_m > 1, int4=Int4Format(group=32, zero_points=True))  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("int4", FORMATS, ids=lambda int4: int4.label)
@pytest.mark.parametrize("T", [1, 2, 3, 4, 8, 16, 64, 256, 1000, 4096])
def test_real_shapes(T: int, int4: Int4Format) -> None:
    """Qwen3-30B-A3B, all of its experts and half of them, on tiles that are shipped or guessed."""
    context = make_context(torch.device("cuda"), torch.bfloat16)
    for num_ranks in (1, 2):
        place = ExpertPlacement(num_experts=128, num_ranks=num_ranks, rank=num_ranks - 1)
        tiles = context.tiles.experts(place.num_local, 768, 2048, T, T * 8, weights=INT4_NAME)
        check(
            make_ids(T, 128, 8, "cuda"), E=place.num_local, H=2048, width=768,
            tiles=(tiles.gate_up, tiles.down), dtype=torch.bfloat16, device="cuda",
            pdl=context.pdl, int4=int4,
            expert_map_E=None if num_ranks == 1 else place.expert_map("cuda"),
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(40))
def test_random_shapes(seed: int) -> None:
    """Of sizes, groups and tiles that a model, a layout or a tune may ask for."""
    draw = random.Random(seed)
    int4 = draw.choice(FORMATS)
    unit = int4.group or 32
    H, width = draw.randint(1, 12) * unit, draw.randint(1, 8) * unit
    E, T = draw.randint(1, 9), draw.randint(1, 90)
    block_m = draw.choice([1, 16, 16, 32, 64, 128])
    tiles = random_tiles(draw, block_m, [32, 64, 128, 256])
    ids = make_ids(T, E, min(E, draw.randint(1, 8)), "cuda")
    torch.manual_seed(seed)
    dtype = draw.choice([torch.bfloat16, torch.bfloat16, torch.float32])
    check(
        ids, E=E, H=H, width=width, tiles=tiles, dtype=dtype,
        device="cuda", pdl=draw.choice([False, True]), int4=int4,
    )  # fmt: skip
