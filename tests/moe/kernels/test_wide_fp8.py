"""Expert GEMMs of eight bits on both sides, against fp64 products of those very numbers."""

from __future__ import annotations

import random

import pytest
import torch

from moe.base.context import make_context
from moe.base.gemm_fp8 import linear_fp8
from moe.base.promoted_dot import specializes
from moe.base.quantize_rows import quantize_rows
from moe.base.quantized import Quantized, take_quantized
from moe.base.specialized_fp8 import (
    specialized_down,
    specialized_gate_up,
    specialized_linear,
)
from moe.base.tiles import FP8_NAME, MANY_ROWS, ExpertTiles, Tiles, experts_key
from moe.base.weight import Weight
from moe.base.workspace import Workspace
from moe.kernels.align import align
from moe.kernels.experts import expert_routes
from moe.kernels.narrow_fp8 import down_narrow, experts_narrow_fit, gate_up_narrow
from moe.kernels.wide_fp8 import down_fp8, experts_fit, gate_up_fp8
from moe.placement import ExpertPlacement
from moe.routes import local_ids
from tests.moe.builders import interpreted
from tests.moe.fp8 import ROWS, check_product, exact, make_fp8
from tests.moe.kernels.grouped import (
    DEVICE,
    expected_routes,
    make_fp8_experts,
    make_ids,
    spread,
)

pytestmark = pytest.mark.interpreter


def make_rows(x_TH: torch.Tensor) -> Quantized:
    out = take_quantized(Workspace(x_TH.device), "x", (x_TH.shape[0], x_TH.shape[1]))
    return quantize_rows(x_TH, out=out, pdl=False)


def check(
    ids_TK: torch.Tensor,
    *,
    E: int,
    H: int,
    width: int,
    tiles: ExpertTiles | None,
    block: tuple[int, int],
    expert_map_E: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    gaps: bool = False,
    device: str = DEVICE,
    pdl: bool = False,
) -> None:
    """Rows of local routes are right, no other is written; the second GEMM is right of what the
    first one made. Without tiles by programs whose warps have roles; of few rows where tiles are
    swapped."""
    T, K = ids_TK.shape
    w13, w2 = make_fp8_experts(E, H, width, block, device)
    narrow = tiles is not None and tiles.gate_up.swap
    if tiles is None:
        assert specializes(w13, 2 * width) and specializes(w2, H)
    else:
        assert (experts_narrow_fit if narrow else experts_fit)(tiles, w13, w2)
    block_m, group = (128, 128) if tiles is None else (tiles.gate_up.block_m, tiles.gate_up.block_n)
    x_TH = make_rows(torch.randn(T, H, device=device))
    inner_PI = take_quantized(Workspace(device), "inner", (T * K, width), group)
    inner_PI.values.view(torch.uint8).fill_(0x7F)  # NaN
    inner_PI.scales.fill_(torch.nan)
    out_PH = torch.full((T * K, H), torch.nan, dtype=dtype, device=device)
    aligned = align(ids_TK.view(-1), expert_map_E, E, block_m)
    order_R = aligned.order[: int(aligned.offsets[-1])].long()
    aligned = spread(aligned) if gaps else aligned
    if tiles is None:
        specialized_gate_up(x_TH, w13, aligned, K, out_PI=inner_PI, pdl=True)
        specialized_down(inner_PI, w2, aligned, out_PH=out_PH, pdl=True)
    else:
        gate_up, down = (gate_up_narrow, down_narrow) if narrow else (gate_up_fp8, down_fp8)
        gate_up(x_TH, w13, aligned, K, tiles.gate_up, out_PI=inner_PI, pdl=pdl)
        down(inner_PI, w2, aligned, tiles.down, out_PH=out_PH, pdl=pdl)
    local_P = local_ids(ids_TK, expert_map_E).flatten()
    expected_PI, _ = expected_routes(x_TH.plain(), local_P.view(T, K), exact(w13), exact(w2))
    count = len(order_R)
    made_RI = Quantized(inner_PI.values[:count], inner_PI.scales[:count], inner_PI.group)
    check_close_groups(made_RI, expected_PI[order_R])
    assert inner_PI.scales[count:].isnan().all()
    for expert in local_P[order_R].unique().tolist():
        mine_R = local_P[order_R] == expert
        check_product(out_PH[order_R[mine_R]], made_RI.plain()[mine_R].double(), exact(w2)[expert])
    others_P = torch.ones(T * K, dtype=torch.bool, device=device)
    others_P[order_R] = False
    assert out_PH[others_P].isnan().all()


def check_close_groups(rows: Quantized, expected: torch.Tensor) -> None:
    """As `check_quantized`, of sums that are inexact by a little of each group's largest."""
    groups = expected.view(*rows.scales.shape, rows.group)
    scales = groups.abs().amax(-1, keepdim=True) / 448
    error = (rows.plain().double().view(groups.shape) - groups).abs()
    inexact = scales * (4.0 if expected.is_cuda else 0.01)
    assert (error <= torch.maximum(groups.abs() / 16, scales * 2.0**-10) + inexact).all()


def tile(block_m: int = 64, block_n: int = 32, block_k: int = 64, **fields: int) -> Tiles:
    return Tiles(block_m=block_m, block_n=block_n, block_k=block_k, stages=2, **fields)


@pytest.mark.parametrize(
    ("block", "H", "width", "gate_up", "down"),
    [
        ((32, 32), 128, 64, tile(), tile()),
        ((64, 64), 256, 64, tile(block_n=32), tile(block_n=64, block_k=128)),
        ((128, 128), 128, 128, tile(block_n=128, block_k=128), tile(block_n=128, block_k=128)),
        ((128, 128), 384, 128, tile(block_n=64), tile(block_n=256, block_k=128)),
        (ROWS, 128, 96, tile(), tile(block_n=256)),
    ],
    ids=str,
)
def test_routes(block: tuple[int, int], H: int, width: int, gate_up: Tiles, down: Tiles) -> None:
    """Tiles within a block of scales, that fill one, and two products wide."""
    tiles = ExpertTiles(gate_up=gate_up, down=down)
    check(make_ids(7, 3, 2, DEVICE), E=3, H=H, width=width, tiles=tiles, block=block)


def test_full_tiles_beside_nearly_empty_ones() -> None:
    """Of 128 rows, with one expert of 130 routes and one of 5."""
    ids = torch.zeros(135, 1, dtype=torch.int32, device=DEVICE)
    ids[::30] = 2
    tiles = ExpertTiles(gate_up=tile(128), down=tile(128))
    check(ids, E=3, H=128, width=32, tiles=tiles, block=(32, 32))


def test_routes_of_other_ranks_and_tiles_of_no_expert() -> None:
    place = ExpertPlacement(num_experts=8, num_ranks=3, rank=1)
    ids, index = make_ids(11, 8, 4, DEVICE), place.expert_map(DEVICE)
    tiles = ExpertTiles(gate_up=tile(), down=tile())
    check(ids, E=place.num_local, H=128, width=32, tiles=tiles, block=(32, 32),
          expert_map_E=index, gaps=True)  # fmt: skip


@pytest.mark.parametrize(
    ("gate_up", "down"),
    [
        (tile(block_m=32), tile(block_m=32)),
        (tile(swap=True), tile()),
        (tile(block_n=64), tile()),  # 96 columns are no whole groups of it
        (tile(), tile(splits=2)),
    ],
    ids=str,
)
def test_tiles_that_do_not_fit(gate_up: Tiles, down: Tiles) -> None:
    weights = make_fp8((2, 192, 128), ROWS, size=1.0), make_fp8((2, 128, 96), ROWS, size=1.0)
    assert experts_fit(ExpertTiles(gate_up=tile(), down=tile()), *weights)
    assert not experts_fit(ExpertTiles(gate_up=gate_up, down=down), *weights)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")
@pytest.mark.parametrize("T", [MANY_ROWS - 1, MANY_ROWS])
def test_many_tokens_have_eight_bits(T: int) -> None:
    """Made by a launch more where nobody gives them; fewer tokens stay as they are."""
    E, H, width = 2, 128, 32
    context = interpreted(torch.float16)
    tiles = ExpertTiles(gate_up=tile(128), down=tile(128))
    context.tiles.experts_tables[experts_key(E, width, H, FP8_NAME)] = {1: tiles}
    w13, w2 = make_fp8_experts(E, H, width, (32, 32), DEVICE)
    hidden_TH = torch.randn(T, H).half()
    hidden_TH[:, ::3] *= 0.05
    ids_TK, weights_TK = torch.randint(E, (T, 1), dtype=torch.int32), torch.ones(T, 1)
    arguments = hidden_TH, weights_TK, ids_TK, w13, w2, None, context
    out = expert_routes(*arguments)[0].clone()
    quantized_TH = make_rows(hidden_TH)
    assert torch.equal(out, expert_routes(*arguments, quantized_TH)[0])
    seen_TH = quantized_TH.plain() if T == MANY_ROWS else hidden_TH
    _, expected = expected_routes(seen_TH, ids_TK, exact(w13), exact(w2))
    error = (out[:, 0].double() - expected).square().mean().sqrt() / expected.std()
    assert (0.005 < error < 0.05) if T == MANY_ROWS else error < 0.004


@pytest.mark.gpu
@pytest.mark.parametrize("block", [(128, 128), ROWS], ids=str)
@pytest.mark.parametrize("T", [512, 1000, 4096])
def test_real_shapes(T: int, block: tuple[int, int]) -> None:
    """Qwen3-30B-A3B on the tiles in use, all of a batch and half of it."""
    context = make_context(torch.device("cuda"), torch.bfloat16)
    for num_ranks in (1, 2):
        place = ExpertPlacement(num_experts=128, num_ranks=num_ranks, rank=num_ranks - 1)
        tiles = context.tiles.experts(place.num_local, 768, 2048, T, T * 8, weights=FP8_NAME)
        check(
            make_ids(T, 128, 8, "cuda"), E=place.num_local, H=2048, width=768, tiles=tiles,
            block=block, dtype=torch.bfloat16, device="cuda", pdl=context.pdl,
            expert_map_E=None if num_ranks == 1 else place.expert_map("cuda"),
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("roles", [False, True])
@pytest.mark.parametrize("T", [700, 2000])
def test_experts_too_large_for_the_cache(T: int, roles: bool) -> None:
    """Whose tiles take blocks of columns together."""
    context = make_context(torch.device("cuda"), torch.bfloat16)
    tiles = context.tiles.experts(3, 2048, 4096, T, T * 2, weights=FP8_NAME)
    check(
        make_ids(T, 3, 2, "cuda"), E=3, H=4096, width=2048, block=(128, 128), device="cuda",
        tiles=None if roles else tiles, dtype=torch.bfloat16, pdl=context.pdl,
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(40))
def test_random_shapes(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    block = draw.choice([(128, 128), (128, 128), (64, 64), ROWS])
    H, width = draw.randint(1, 10) * 128, draw.randint(1, 8) * 128
    block_m = draw.choice([64, 128])
    gate_up, down = (
        Tiles(
            block_m=block_m,
            block_n=draw.choice(columns),
            block_k=draw.choice([64, 128]),
            warps=draw.choice([4, 8]),
            stages=draw.choice([2, 3]),
        )
        for columns in ([32, 64] if block[0] == 64 else [64, 128],
                        [32, 64] if block[0] == 64 else [64, 128, 256])
    )  # fmt: skip
    E, T = draw.randint(1, 9), draw.randint(1, 900)
    check(
        make_ids(T, E, min(E, draw.randint(1, 8)), "cuda"), E=E, H=H, width=width,
        tiles=ExpertTiles(gate_up=gate_up, down=down), block=block, dtype=torch.bfloat16,
        device="cuda", pdl=draw.choice([False, True]), gaps=draw.choice([False, True]),
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("block", [(128, 128), ROWS], ids=str)
@pytest.mark.parametrize("T", [512, 1000, 4096])
def test_real_shapes_by_warps_with_roles(T: int, block: tuple[int, int]) -> None:
    for num_ranks in (1, 2):
        place = ExpertPlacement(num_experts=128, num_ranks=num_ranks, rank=num_ranks - 1)
        check(
            make_ids(T, 128, 8, "cuda"), E=place.num_local, H=2048, width=768, tiles=None,
            block=block, dtype=torch.bfloat16, device="cuda",
            expert_map_E=None if num_ranks == 1 else place.expert_map("cuda"),
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(20))
def test_random_shapes_by_warps_with_roles(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    E, T = draw.randint(1, 9), draw.randint(1, 900)
    check(
        make_ids(T, E, min(E, draw.randint(1, 8)), "cuda"), E=E, H=draw.randint(1, 8) * 256,
        width=draw.randint(1, 8) * 128, tiles=None, block=draw.choice([(128, 128), ROWS]),
        dtype=torch.bfloat16, device="cuda", gaps=draw.choice([False, True]),
    )  # fmt: skip


@pytest.mark.gpu
def test_warps_with_roles_give_the_bits_of_others() -> None:
    """Of experts and dense; the same at every launch."""
    torch.manual_seed(0)
    E, K, T, H, width = 16, 4, 1500, 512, 384
    w13, w2 = make_fp8_experts(E, H, width, (128, 128), "cuda")
    x_TH = make_rows(torch.randn(T, H, device="cuda"))
    aligned = align(make_ids(T, E, K, "cuda").view(-1), None, E, 128)
    usual = Tiles(block_m=128, block_n=128, block_k=128, warps=8, stages=2)

    count = int(aligned.offsets[-1])
    local_R = aligned.order[:count].long()

    def run(*, roles: bool) -> list[torch.Tensor]:
        inner_PI = take_quantized(Workspace("cuda"), "inner", (T * K, width))
        out_PH = torch.empty(T * K, H, device="cuda", dtype=torch.bfloat16)
        out_TN = torch.empty(T, 2 * width, device="cuda", dtype=torch.bfloat16)
        dense = Weight(w13.values[0], w13.scales[0], w13.block)
        if roles:
            specialized_gate_up(x_TH, w13, aligned, K, out_PI=inner_PI, pdl=True)
            specialized_down(inner_PI, w2, aligned, out_PH=out_PH, pdl=True)
            specialized_linear(x_TH, dense, out_MN=out_TN, pdl=True)
        else:
            gate_up_fp8(x_TH, w13, aligned, K, usual, out_PI=inner_PI, pdl=False)
            down_fp8(inner_PI, w2, aligned, usual, out_PH=out_PH, pdl=False)
            linear_fp8(x_TH, dense, usual, out_MN=out_TN, pdl=False)
        made = inner_PI.values[:count].view(torch.uint8), inner_PI.scales[:count]
        return [*made, out_PH[local_R], out_TN]

    expected = run(roles=False)
    for _ in range(5):
        for made, right in zip(run(roles=True), expected, strict=True):
            assert torch.equal(made, right)


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "expected"), [(1000, False), (2048, True)])
def test_many_rows_an_expert_are_multiplied_by_warps_with_roles(
    T: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(torch.device("cuda"), torch.bfloat16)
    w13, w2 = make_fp8_experts(128, 512, 256, (128, 128), "cuda")
    launched = []
    monkeypatch.setattr(
        "moe.kernels.eight_bits.specialized_down", lambda *_, **__: launched.append(True)
    )
    hidden = torch.randn(T, 512, device="cuda", dtype=torch.bfloat16)
    ids_TK = make_ids(T, 128, 8, "cuda")
    expert_routes(hidden, torch.rand(T, 8, device="cuda"), ids_TK, w13, w2, None, context)
    assert bool(launched) == (expected and context.specialized)
