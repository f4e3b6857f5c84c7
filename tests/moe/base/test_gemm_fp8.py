"""Products of rows and weights of eight bits, against fp64 products of those very numbers."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from moe.base import gemm
from moe.base.context import make_context
from moe.base.gemm import linear_parts, rows_for
from moe.base.gemm_fp8 import linear_fp8
from moe.base.promoted_dot import fits
from moe.base.quantize_rows import quantize_rows
from moe.base.quantized import Quantized, take_quantized
from moe.base.specialized_fp8 import specialized_linear
from moe.base.tiles import FP8_NAME, MANY_ROWS, Tiles
from moe.base.workspace import Workspace
from tests.moe.base.test_gemm import context_of
from tests.moe.fp8 import ROWS, check_product, exact, make_fp8

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_rows(x_MK: torch.Tensor, group: int = 128) -> Quantized:
    out = take_quantized(Workspace(x_MK.device), "x", (x_MK.shape[0], x_MK.shape[1]), group)
    return quantize_rows(x_MK, out=out, pdl=False)


def check(
    M: int, N: int, K: int, tiles: Tiles, block: tuple[int, int],
    *, dtype: torch.dtype = torch.float32, group: int = 128, device: str = DEVICE,
    pdl: bool = False, roles: bool = False,
) -> None:  # fmt: skip
    """With ``roles`` by programs whose warps have some."""
    x_MK = make_rows(torch.randn(M, K, device=device), group)
    weight = make_fp8((N, K), block, size=K**-0.5, device=device)
    out_MN = torch.full((M + 1, N), torch.nan, device=device, dtype=dtype)
    if roles:
        specialized_linear(x_MK, weight, out_MN=out_MN[:M], pdl=True)
    else:
        linear_fp8(x_MK, weight, tiles, out_MN=out_MN[:M], pdl=pdl)
    assert out_MN[M].isnan().all()
    check_product(out_MN[:M], x_MK.plain().double(), exact(weight))


@pytest.mark.parametrize(
    ("M", "N", "K", "block_n", "block"),
    [
        (70, 96, 256, 32, (32, 64)),
        (64, 128, 128, 32, (64, 32)),
        (1, 160, 128, 32, (32, 128)),
        (130, 48, 256, 32, ROWS),
        (66, 40, 128, 64, ROWS),
    ],
    ids=str,
)
def test_tiles(M: int, N: int, K: int, block_n: int, block: tuple[int, int]) -> None:
    """That lie within a block of scales, that fill one; the last of rows and columns half empty."""
    check(M, N, K, Tiles(block_m=64, block_n=block_n, block_k=128), block)


def test_two_dots_a_tile() -> None:
    """Of 128 columns each; the second one may lie behind the last column."""
    tiles = Tiles(block_m=64, block_n=256, block_k=128)
    check(65, 384, 256, tiles, (128, 128))
    check(3, 136, 128, tiles, ROWS)


@pytest.mark.parametrize("group", [32, 64])
def test_smaller_groups_of_columns(group: int) -> None:
    check(70, 64, 192, Tiles(block_m=64, block_n=64, block_k=128), (64, 64), group=group)


def test_many_bands_of_rows() -> None:
    check(64 * 9 + 1, 32, 32, Tiles(block_m=64, block_n=16, block_k=32), (16, 32), group=32)


@pytest.mark.parametrize(
    "change", [{"block_m": 32}, {"swap": True}, {"splits": 2}, {"block_n": 512}]
)
def test_tiles_that_do_not_fit(change: dict[str, int]) -> None:
    weight = make_fp8((256, 256), (128, 128), size=1.0)
    tiles = Tiles(block_m=64, block_n=128, block_k=128)
    assert fits(tiles, weight)
    assert not fits(dataclasses.replace(tiles, **change), weight)


@pytest.mark.parametrize(
    ("N", "K", "block"), [(256, 192, (64, 64)), (144, 128, (48, 128)), (128, 192, ROWS)], ids=str
)
def test_weights_that_do_not_fit(N: int, K: int, block: tuple[int, int]) -> None:
    """Inputs that are no whole groups; blocks that a dot's columns would cross."""
    assert not fits(Tiles(block_m=64, block_n=32, block_k=128), make_fp8((N, K), block, size=1.0))


@pytest.mark.parametrize("rows", [MANY_ROWS - 1, MANY_ROWS])
def test_many_rows_have_eight_bits(rows: int) -> None:
    """However they come; fewer rows stay as they are."""
    N, K, many = 16, 128, rows >= MANY_ROWS
    tiles = Tiles(block_m=128, block_n=16, block_k=128)
    context = context_of(N, K, tiles, torch.float16, FP8_NAME)
    weight = make_fp8((N, K), (16, 128), size=K**-0.5, device=DEVICE)
    x_MK = torch.randn(rows, K, device=DEVICE).half()
    x_MK[:, ::3] *= 0.05  # what eight bits round
    quantized_MK = make_rows(x_MK)
    out_MN = linear_parts(x_MK, weight, context, "parts")[0].clone()
    seen_MK = quantized_MK.plain() if many else x_MK
    check_product(out_MN, seen_MK.double(), exact(weight))
    held = linear_parts(x_MK, weight, context, "parts", quantized_MK=quantized_MK)[0]
    assert torch.equal(held, out_MN)
    own = rows_for(weight, rows, context, "rows")
    assert isinstance(own, Quantized) == many
    assert own.shape == (rows, K)
    if many:
        alone = linear_parts(quantized_MK, weight, context, "parts", dtype=torch.float32)
        assert alone.dtype == torch.float32
        check_product(alone[0], quantized_MK.plain().double(), exact(weight))


def test_fp32_and_plain_weights_keep_their_rows() -> None:
    weight = make_fp8((16, 128), (16, 128), size=1.0)
    tiles = Tiles(block_m=64, block_n=16, block_k=128)
    context = context_of(16, 128, tiles, torch.float32, FP8_NAME)
    assert isinstance(rows_for(weight, MANY_ROWS, context, "rows"), torch.Tensor)


@pytest.mark.gpu
@pytest.mark.parametrize("block", [(128, 128), ROWS], ids=str)
@pytest.mark.parametrize("M", [1, 512, 1000, 8192])
@pytest.mark.parametrize(("N", "K"), [(5120, 2048), (2048, 4096), (24576, 4096)])
def test_real_shapes(N: int, K: int, M: int, block: tuple[int, int]) -> None:
    """On the tiles in use, and as the model launches them."""
    if M * N > 1 << 27:
        pytest.skip("the fp64 product would not fit")
    context = make_context(torch.device("cuda"), torch.bfloat16)
    tiles = context.tiles.linear(N, K, max(M, MANY_ROWS), weights=FP8_NAME)
    assert tiles is not None
    for roles in (False, True):
        check(M, N, K, tiles, block, dtype=torch.bfloat16, device="cuda", pdl=context.pdl,
              roles=roles)  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(40))
def test_random_shapes(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    block = draw.choice([(128, 128), (128, 128), (64, 128), (128, 64), ROWS])
    N = draw.randint(1, 12) * (17 if block == ROWS else 128)
    M, K = draw.randint(1, 700), draw.randint(1, 12) * 128
    tiles = Tiles(
        block_m=draw.choice([64, 128]),
        block_n=draw.choice([32, 64, 128, 256] if block[0] != 64 else [32, 64]),
        block_k=draw.choice([64, 128]),
        warps=draw.choice([4, 8]),
        stages=draw.choice([2, 3, 4]),
    )
    group = draw.choice([64, 128])
    check(M, N, K, tiles, block, dtype=torch.bfloat16, group=group, device="cuda",
          pdl=draw.choice([False, True]))  # fmt: skip


@pytest.mark.parametrize(
    ("M", "N", "roles"),
    [(1024, 5120, False), (2048, 5120, True), (1024, 2048, False), (2048, 2048, True)],
)
def test_warps_have_roles_where_their_tiles_fill_the_device(
    M: int, N: int, roles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """160, 320, 64 and 128 tiles on 132 multiprocessors."""
    launched = []
    for name in ("specialized_linear", "linear_fp8"):
        monkeypatch.setattr(gemm, name, lambda *_, name=name, **__: launched.append(name))
    tiles = Tiles(block_m=64, block_n=128, block_k=128)
    context = context_of(N, 256, tiles, torch.bfloat16, FP8_NAME)
    context = dataclasses.replace(context, num_cores=132, specialized=True)
    weight = make_fp8((N, 256), (128, 128), size=0.1, device=DEVICE)
    rows = rows_for(weight, M, context, "x")
    linear_parts(rows, weight, context, "out")
    assert launched == ["specialized_linear" if roles else "linear_fp8"]
