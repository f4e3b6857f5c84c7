"""Products of few rows and weights of eight bits, against fp64 products of those very numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from moe.base.context import make_context
from moe.base.gemm import linear_parts, rows_for, takes_quantized
from moe.base.promoted_dot import narrow_fits
from moe.base.tiles import FP8_NAME, MANY_ROWS, Tiles
from tests.moe.base.test_gemm import context_of
from tests.moe.base.test_gemm_fp8 import make_rows
from tests.moe.fp8 import ROWS, check_product, exact, make_fp8

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILES = Tiles(block_m=16, block_n=64, block_k=128, swap=True)


@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize(
    ("M", "N", "K", "block"),
    [(5, 128, 640, (128, 128)), (16, 64, 384, (64, 64)), (37, 192, 640, ROWS)],
    ids=str,
)
def test_parts(M: int, N: int, K: int, block: tuple[int, int], splits: int) -> None:
    """Rows that nobody made eight bits wide stay as they are; the last part may be shorter."""
    tiles = dataclasses.replace(TILES, splits=splits)
    context = context_of(N, K, tiles, torch.float16, FP8_NAME)
    weight = make_fp8((N, K), block, size=K**-0.5, device=DEVICE)
    x_MK = torch.randn(M, K, device=DEVICE).half()
    x_MK[:, ::3] *= 0.05  # what eight bits round
    quantized_MK = make_rows(x_MK)
    parts = linear_parts(x_MK, weight, context, "parts", quantized_MK=quantized_MK)
    assert len(parts) == splits
    assert parts.dtype == (torch.float16 if splits == 1 else torch.float32)
    check_product(parts.sum(0), quantized_MK.plain().double(), exact(weight))
    assert isinstance(rows_for(weight, M, context, "rows"), torch.Tensor)
    alone = linear_parts(quantized_MK, weight, context, "alone")
    assert torch.equal(alone, parts)
    plain = linear_parts(x_MK, weight, context, "plain")
    check_product(plain.sum(0), x_MK.double(), exact(weight))


@pytest.mark.parametrize(("dtype", "takes"), [(torch.float32, False), (torch.float16, True)])
def test_fp32_keeps_its_rows(dtype: torch.dtype, takes: bool) -> None:
    context = context_of(128, 256, TILES, dtype, FP8_NAME)
    weight = make_fp8((128, 256), (128, 128), size=1.0)
    assert takes_quantized(8, weight, context) == takes


@pytest.mark.parametrize("change", [{"block_n": 32}, {"swap": False}, {"block_n": 256}])
def test_tiles_that_do_not_fit(change: dict[str, int]) -> None:
    weight = make_fp8((256, 256), (128, 128), size=1.0)
    assert narrow_fits(TILES, weight)
    assert not narrow_fits(dataclasses.replace(TILES, **change), weight)


@pytest.mark.parametrize(
    ("N", "K", "block"), [(256, 192, (64, 64)), (96, 128, ROWS), (96, 128, (32, 128))], ids=str
)
def test_weights_that_do_not_fit(N: int, K: int, block: tuple[int, int]) -> None:
    """Inputs that are no whole groups, columns that are no whole tiles or cross blocks."""
    assert not narrow_fits(TILES, make_fp8((N, K), block, size=1.0))


@pytest.mark.gpu
@pytest.mark.parametrize("block", [(128, 128), ROWS], ids=str)
@pytest.mark.parametrize("M", [2, 8, 16, 17, 32, 64, 100, 256, MANY_ROWS - 1])
@pytest.mark.parametrize(("N", "K"), [(5120, 2048), (2048, 4096)])
def test_real_shapes(N: int, K: int, M: int, block: tuple[int, int]) -> None:
    """On the tiles in use, in whatever form rows then have; ten times, with equal bits."""
    context = make_context(torch.device("cuda"), torch.bfloat16)
    weight = make_fp8((N, K), block, size=K**-0.5, device="cuda")
    x_MK = torch.randn(M, K, device="cuda").bfloat16()
    quantized_MK = make_rows(x_MK)
    takes = takes_quantized(M, weight, context)
    found = [
        linear_parts(x_MK, weight, context, "parts", quantized_MK=quantized_MK).clone()
        for _ in range(10)
    ]
    seen_MK = quantized_MK.plain() if takes else x_MK
    check_product(found[0].float().sum(0), seen_MK.double(), exact(weight))
    assert all(torch.equal(found[0], each) for each in found)
