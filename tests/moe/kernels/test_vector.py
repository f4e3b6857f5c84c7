"""Expert GEMMs of a few tokens against each expert's own matrices in fp64, route by route."""

from __future__ import annotations

import pytest
import torch

from moe.kernels.context import make_context
from moe.kernels.tiles import Tiles
from moe.kernels.vector import down_vector, gate_up_vector
from moe.placement import ExpertPlacement
from moe.routes import local_ids
from tests.moe.kernels.test_grouped import TOLERANCE, expected_routes, make_experts, make_ids

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILES = Tiles(block_m=1, block_n=8, block_k=32), Tiles(block_m=1, block_n=16, block_k=16)


def check(
    ids_TK: torch.Tensor,
    *,
    E: int,
    H: int,
    width: int,
    tiles: tuple[Tiles, Tiles] = TILES,
    dtype: torch.dtype = torch.float32,
    expert_map_E: torch.Tensor | None = None,
    device: str = DEVICE,
    pdl: bool = False,
) -> None:
    """Rows of local routes are right, and nothing else is written."""
    T, K = ids_TK.shape
    x_TH = torch.randn(T, H, device=device).to(dtype)
    w13, w2 = make_experts(E, H, width, dtype, device)
    inner_PI = torch.full((T * K, width), torch.nan, dtype=dtype, device=device)
    out_PH = torch.full((T * K, H), torch.nan, dtype=dtype, device=device)
    gate_up_vector(x_TH, w13, ids_TK, expert_map_E, tiles[0], out_PI=inner_PI, pdl=pdl)
    down_vector(inner_PI, w2, ids_TK, expert_map_E, tiles[1], out_PH=out_PH, pdl=pdl)
    expected = expected_routes(x_TH, local_ids(ids_TK, expert_map_E), w13, w2)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype], "equal_nan": True}
    torch.testing.assert_close(inner_PI.double(), expected[0], **close)
    torch.testing.assert_close(out_PH.double(), expected[1], **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("T", "H", "width"), [(1, 48, 24), (4, 17, 48), (3, 24, 17), (2, 64, 32), (1, 1, 1)]
)
def test_routes(T: int, H: int, width: int, dtype: torch.dtype) -> None:
    """(2, 64, 32): sizes that tiles divide."""
    check(make_ids(T, 5, 3, DEVICE), E=5, H=H, width=width, dtype=dtype)


def test_one_expert_and_depth_in_one_piece() -> None:
    tiles = Tiles(block_m=1, block_n=2, block_k=64), Tiles(block_m=1, block_n=32, block_k=32)
    ids = torch.zeros(3, 1, dtype=torch.int32, device=DEVICE)
    check(ids, E=1, H=48, width=24, tiles=tiles)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_routes_of_other_ranks_are_not_touched(rank: int) -> None:
    place = ExpertPlacement(num_experts=8, num_ranks=3, rank=rank)
    index = place.expert_map(DEVICE)
    check(make_ids(4, 8, 4, DEVICE), E=place.num_local, H=24, width=17, expert_map_E=index)


@pytest.mark.parametrize("with_map", [False, True])
def test_no_route_writes_nothing(with_map: bool) -> None:
    place = ExpertPlacement(num_experts=8, num_ranks=2, rank=1)
    index = place.expert_map(DEVICE) if with_map else None
    ids = torch.full((2, 3), -1, dtype=torch.int32, device=DEVICE)
    if with_map:
        ids[0] = torch.tensor([0, 3, 2])
    check(ids, E=4, H=24, width=17, expert_map_E=index)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("T", [1, 2, 3, 4])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_real_shapes(T: int, num_ranks: int, dtype: torch.dtype) -> None:
    """Qwen3-30B-A3B, on the tiles that are shipped for it or guessed."""
    place = ExpertPlacement(num_experts=128, num_ranks=num_ranks, rank=num_ranks - 1)
    context = make_context(torch.device("cuda"), dtype)
    tiles = context.tiles.experts(place.num_local, 768, 2048, T, T * 8)
    if tiles.gate_up.block_m != 1:
        pytest.skip("a matter of test_grouped")
    check(
        make_ids(T, 128, 8, "cuda"), E=place.num_local, H=2048, width=768,
        tiles=(tiles.gate_up, tiles.down), dtype=dtype, device="cuda", pdl=context.pdl,
        expert_map_E=None if num_ranks == 1 else place.expert_map("cuda"),
    )  # fmt: skip
