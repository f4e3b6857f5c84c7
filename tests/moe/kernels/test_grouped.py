"""Grouped expert GEMMs against each expert's own matrices in fp64, route by route."""

from __future__ import annotations

import pytest
import torch

from moe.base.context import make_context
from moe.base.tiles import Tiles
from moe.kernels.align import Alignment, align
from moe.kernels.grouped import down, gate_up
from moe.kernels.vector import down_vector, gate_up_vector
from moe.placement import ExpertPlacement
from moe.reference import reference_mlp
from moe.routes import local_ids

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def tile(block_m: int = 16, block_n: int = 16, block_k: int = 16, swap: bool = False) -> Tiles:
    return Tiles(block_m=block_m, block_n=block_n, block_k=block_k, stages=2, swap=swap)


def make_experts(
    E: int, H: int, width: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    w13 = torch.randn(E, 2 * width, H, device=device) * H**-0.5
    w2 = torch.randn(E, H, width, device=device) * width**-0.5
    return w13.to(dtype), w2.to(dtype)


def make_ids(T: int, E: int, K: int, device: str) -> torch.Tensor:
    """K distinct experts a token, a fifth of the tokens without any."""
    ids_TK = torch.rand(T, E, device=device).argsort(dim=1)[:, :K].int()
    ids_TK[torch.rand(T, device=device) < 0.2] = -1
    return ids_TK


def expected_routes(
    x_TH: torch.Tensor, ids_TK: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp64 inner [P,I] and outputs [P,H] of routes to local experts, NaN for those without."""
    K = ids_TK.shape[1]
    local_P = ids_TK.flatten()
    inner_PI = x_TH.new_full((len(local_P), w2.shape[2]), torch.nan, dtype=torch.float64)
    out_PH = x_TH.new_full((len(local_P), w2.shape[1]), torch.nan, dtype=torch.float64)
    for expert in local_P.unique().tolist():
        if expert >= 0:
            routes = (local_P == expert).nonzero()[:, 0]
            gate_IH, up_IH = w13[expert].chunk(2)
            x_HR = x_TH[routes // K].T
            gate, up = gate_IH.double() @ x_HR.double(), up_IH.double() @ x_HR.double()
            inner_PI[routes] = (gate.sigmoid() * gate * up).T
            out_PH[routes] = reference_mlp(x_HR, gate_IH, up_IH, w2[expert]).T
    return inner_PI, out_PH


def spread(aligned: Alignment) -> Alignment:
    """The same tiles with entries of no expert before, between and behind them."""
    experts, starts = (
        torch.full((2 * len(aligned.tile_expert) + 1,), value, dtype=torch.int32, device=x.device)
        for value, x in ((-1, aligned.tile_expert), (-(1 << 30), aligned.tile_start))
    )
    experts[1::2], starts[1::2] = aligned.tile_expert, aligned.tile_start
    return aligned._replace(tile_expert=experts, tile_start=starts)


def check(
    ids_TK: torch.Tensor,
    *,
    E: int,
    H: int,
    width: int,
    tiles: tuple[Tiles, Tiles],
    dtype: torch.dtype = torch.float32,
    expert_map_E: torch.Tensor | None = None,
    gaps: bool = False,
    device: str = DEVICE,
    pdl: bool = False,
) -> None:
    """The kernels that the tiles ask for get the rows of local routes right, and write no other."""
    T, K = ids_TK.shape
    x_TH = torch.randn(T, H, device=device).to(dtype)
    w13, w2 = make_experts(E, H, width, dtype, device)
    inner_PI = torch.full((T * K, width), torch.nan, dtype=dtype, device=device)
    out_PH = torch.full((T * K, H), torch.nan, dtype=dtype, device=device)
    expected_PI, expected_PH = expected_routes(x_TH, local_ids(ids_TK, expert_map_E), w13, w2)
    if tiles[0].block_m == 1:
        gate_up_vector(x_TH, w13, ids_TK, expert_map_E, tiles[0], out_PI=inner_PI, pdl=pdl)
        down_vector(inner_PI, w2, ids_TK, expert_map_E, tiles[1], out_PH=out_PH, pdl=pdl)
    else:
        aligned = align(ids_TK.view(-1), expert_map_E, E, tiles[0].block_m)
        aligned = spread(aligned) if gaps else aligned
        gate_up(x_TH, w13, aligned, K, tiles[0], out_PI=inner_PI, pdl=pdl)
        down(inner_PI, w2, aligned, tiles[1], out_PH=out_PH, pdl=pdl)
        order_R = aligned.order[: int(aligned.offsets[-1])].long()
        nothing_PI = torch.full_like(expected_PI, torch.nan)
        expected_PI = torch.cat((expected_PI[order_R], nothing_PI[len(order_R) :]))
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype], "equal_nan": True}
    torch.testing.assert_close(inner_PI.double(), expected_PI, **close)
    torch.testing.assert_close(out_PH.double(), expected_PH, **close)


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
    ids = torch.full((700, 3), -1, dtype=torch.int32, device=DEVICE)
    ids[::23, 1] = torch.randint(3, (31,), dtype=torch.int32, device=DEVICE)
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
