"""Expert GEMMs of any kind against each expert's own matrices in fp64, route by route."""

from __future__ import annotations

import random

import torch

from moe.base.int4_format import Int4Format
from moe.base.tiles import Tiles
from moe.base.weight import Weight
from moe.kernels.align import Alignment, align
from moe.kernels.grouped import down, gate_up
from moe.kernels.vector import down_vector, gate_up_vector
from moe.reference import reference_mlp
from moe.routes import local_ids
from tests.moe.fp8 import exact, make_fp8
from tests.moe.int4 import make_int4

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def make_experts(
    E: int, H: int, width: int, dtype: torch.dtype, device: str
) -> tuple[Weight, Weight]:
    w13 = torch.randn(E, 2 * width, H, device=device) * H**-0.5
    w2 = torch.randn(E, H, width, device=device) * width**-0.5
    return Weight(w13.to(dtype)), Weight(w2.to(dtype))


def make_fp8_experts(
    E: int, H: int, width: int, block: tuple[int, int], device: str
) -> tuple[Weight, Weight]:
    w13 = make_fp8((E, 2 * width, H), block, size=H**-0.5, device=device)
    w2 = make_fp8((E, H, width), block, size=width**-0.5, device=device)
    return w13, w2


def make_ids(T: int, E: int, K: int, device: str) -> torch.Tensor:
    """K distinct experts a token, a fifth of the tokens without any."""
    ids_TK = torch.rand(T, E, device=device).argsort(dim=1)[:, :K].int()
    ids_TK[torch.rand(T, device=device) < 0.2] = -1
    return ids_TK


def random_tiles(draw: random.Random, block_m: int, depths: list[int]) -> tuple[Tiles, Tiles]:
    """Of gate·up and of down; ``depths`` are those of tiles of several rows."""
    gate_up, down = (
        Tiles(
            block_m=block_m,
            block_n=draw.choice([4, 8, 16] if block_m == 1 else [16, 32, 64, 128]),
            block_k=draw.choice([64, 256, 1024] if block_m == 1 else depths),
            warps=draw.choice([4, 8]),
            stages=draw.choice([2, 3]),
            swap=draw.choice([False, True]),
        )
        for _ in range(2)
    )
    return gate_up, down


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
    block: tuple[int, int] | None = None,
    int4: Int4Format | None = None,
) -> None:
    """The kernels that the tiles ask for get the rows of local routes right, and write no other.

    Given a `block`, weights have eight bits and scales; given `int4`, four.
    """
    T, K = ids_TK.shape
    x_TH = torch.randn(T, H, device=device).to(dtype)
    if int4 is not None:
        w13 = make_int4((E, 2 * width, H), int4, size=H**-0.5, device=device)
        w2 = make_int4((E, H, width), int4, size=width**-0.5, device=device)
    elif block is None:
        w13, w2 = make_experts(E, H, width, dtype, device)
    else:
        w13, w2 = make_fp8_experts(E, H, width, block, device)
    inner_PI = torch.full((T * K, width), torch.nan, dtype=dtype, device=device)
    out_PH = torch.full((T * K, H), torch.nan, dtype=dtype, device=device)
    local_TK = local_ids(ids_TK, expert_map_E)
    expected_PI, _ = expected_routes(x_TH, local_TK, exact(w13), exact(w2))
    order_R = torch.arange(T * K, device=device)
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
    given_PI = torch.full_like(expected_PI, torch.nan)
    given_PI[order_R] = inner_PI[: len(order_R)].double()
    expected_PH = expected_down(given_PI, local_TK, exact(w2))
    torch.testing.assert_close(out_PH.double(), expected_PH, **close)


def expected_down(inner_PI: torch.Tensor, local_TK: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """fp64 outputs [P,H] of the inner values that the second kernel was given, which are rounded;
    NaN for routes without an expert."""
    local_P = local_TK.flatten()
    out_PH = inner_PI.new_full((len(local_P), w2.shape[1]), torch.nan)
    for expert in local_P.unique().tolist():
        if expert >= 0:
            routes = local_P == expert
            out_PH[routes] = inner_PI[routes] @ w2[expert].double().T
    return out_PH
