"""linear_parts over weights of four bits against the product in fp64."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
import triton

from moe.base.context import KernelContext, make_context
from moe.base.gemm import linear_parts
from moe.base.int4_format import Int4Format
from moe.base.tiles import INT4_NAME, Tiles
from tests.moe.base.test_gemm import DEVICE, TOLERANCE, context_of
from tests.moe.int4 import exact_int4, make_int4
from tests.moe.kernels.test_int4 import FORMATS

pytestmark = pytest.mark.interpreter


def check(
    M: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    context: KernelContext,
    int4: Int4Format,
    *,
    out: torch.dtype | None = None,
    device: str = DEVICE,
) -> torch.Tensor:
    """The parts, which lie in the workspace and add up to the product."""
    x_MK = torch.randn(M, K, device=device).to(dtype)
    weight = make_int4((N, K), int4, size=K**-0.5, device=device)
    context.workspace.take("parts", (8 * M * N,), torch.float32).fill_(torch.nan)
    parts = linear_parts(x_MK, weight, context, "parts", dtype=out)
    out = out or dtype
    assert parts.dtype == (out if len(parts) == 1 else torch.float32)
    torch.testing.assert_close(
        parts.double().sum(0), x_MK.double() @ exact_int4(weight).T,
        rtol=TOLERANCE[out], atol=TOLERANCE[out],
    )  # fmt: skip
    return parts


@pytest.mark.parametrize(("swap", "dtype"), [(False, torch.float16), (True, torch.float32)])
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize("int4", FORMATS, ids=lambda int4: int4.label)
def test_tiles(int4: Int4Format, splits: int, swap: bool, dtype: torch.dtype) -> None:
    """Parts end where steps do, so that each step has one group."""
    K = 384 if int4.group == 128 else 192
    tiles = Tiles(block_m=16, block_n=32, block_k=64, swap=swap, splits=splits)
    parts = check(5, 40, K, dtype, context_of(40, K, tiles, dtype, INT4_NAME), int4)
    step = min(64, int4.group or 64)
    assert len(parts) == triton.cdiv(K, step * triton.cdiv(triton.cdiv(K, splits), step))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("int4", FORMATS, ids=lambda int4: int4.label)
def test_one_row(int4: Int4Format, dtype: torch.dtype) -> None:
    K = 384 if int4.group == 128 else 192
    tiles = Tiles(block_m=1, block_n=4, block_k=64)
    check(1, 33, K, dtype, context_of(33, K, tiles, dtype, INT4_NAME), int4)
    check(1, 8, int4.group or 32, dtype, context_of(8, K, tiles, dtype, INT4_NAME), int4)


@pytest.mark.parametrize("M", [0, 1, 20, 70, 300])
def test_what_is_guessed(M: int) -> None:
    """Never the library, and not what stands for wider ones."""
    wide = Tiles(block_m=32, block_n=32, block_k=32)
    context = context_of(48, 64, wide, torch.float16)
    int4 = Int4Format(group=32, zero_points=True)
    check(M, 48, 64, torch.float16, context, int4)
    check(M, 48, 64, torch.float16, context, int4, out=torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("int4", FORMATS, ids=lambda int4: int4.label)
@pytest.mark.parametrize("M", [1, 2, 8, 33, 64, 65, 256, 1000])
@pytest.mark.parametrize(("N", "K"), [(5120, 2048), (2048, 4096), (384, 2048), (12288, 4096)])
def test_real_shapes(N: int, K: int, M: int, int4: Int4Format) -> None:
    context = make_context(torch.device("cuda"), torch.bfloat16)
    check(M, N, K, torch.bfloat16, context, int4, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(40))
def test_random_shapes(seed: int) -> None:
    """Of sizes, groups and tiles that a model, a layout or a tune may ask for."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    int4 = draw.choice(FORMATS)
    N, K = draw.randint(1, 600), draw.randint(1, 12) * (int4.group or 32)
    M = draw.randint(1, 300)
    tiles = Tiles(
        block_m=draw.choice([16, 32, 64, 128]),
        block_n=draw.choice([16, 32, 64, 128]),
        block_k=draw.choice([32, 64, 128, 256]),
        warps=draw.choice([4, 8]),
        stages=draw.choice([2, 3]),
        swap=draw.choice([False, True]),
        splits=draw.choice([1, 1, 2, 4]),
    )
    if draw.random() < 0.2:
        M, tiles = 1, Tiles(block_m=1, block_n=draw.choice([2, 8, 16]), block_k=64)
    context = context_of(N, K, tiles, torch.bfloat16, INT4_NAME)
    context = dataclasses.replace(context, pdl=draw.choice([False, True]))
    check(M, N, K, torch.bfloat16, context, int4, device="cuda")
