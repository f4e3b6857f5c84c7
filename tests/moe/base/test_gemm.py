"""linear_parts against the product in fp64, on every way a dense GEMM may take."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
import triton

from moe.base.context import KernelContext, make_context
from moe.base.gemm import linear_parts
from moe.base.tiles import FP8_NAME, Tiles, TileTable, linear_key
from moe.base.weight import Weight
from moe.base.workspace import Workspace
from tests.moe.fp8 import ROWS, exact, make_fp8

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
DTYPES = [torch.float32, torch.float16]


def context_of(
    N: int, K: int, tiles: Tiles | None, dtype: torch.dtype, weights: str | None = None
) -> KernelContext:
    """One that knows one shape's tiles, whatever the number of rows."""
    name = str(dtype).removeprefix("torch.")
    book = TileTable(
        dtype=name,
        item_size=dtype.itemsize,
        shared_bytes=100_000,
        linear={linear_key(N, K, weights or name): {1: tiles}},
    )
    return KernelContext(workspace=Workspace(DEVICE), tiles=book, pdl=False, num_cores=2)


def check(
    M: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    context: KernelContext,
    *,
    out: torch.dtype | None = None,
    device: str = DEVICE,
    block: tuple[int, int] | None = None,
) -> torch.Tensor:
    """The parts, which lie in the workspace and add up to the product; given a `block` with weights
    of eight bits."""
    x_MK = torch.randn(M, K, device=device).to(dtype)
    if block is None:
        weight = Weight((torch.randn(N, K, device=device) * K**-0.5).to(dtype))
    else:
        weight = make_fp8((N, K), block, size=K**-0.5, device=device)
    # What an earlier step left must not show.
    context.workspace.take("parts", (8 * M * N,), torch.float32).fill_(torch.nan)
    parts = linear_parts(x_MK, weight, context, "parts", dtype=out)
    buffer = context.workspace.take("parts", (8 * M * N,), torch.float32)
    assert M == 0 or parts.data_ptr() == buffer.data_ptr()
    assert parts.shape[1:] == (M, N)
    out = out or dtype
    assert parts.dtype == (out if len(parts) == 1 else torch.float32)
    torch.testing.assert_close(
        parts.double().sum(0), x_MK.double() @ exact(weight).T,
        rtol=TOLERANCE[out], atol=TOLERANCE[out],
    )  # fmt: skip
    return parts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("splits", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("M", "N", "K"), [(1, 24, 48), (3, 17, 40), (17, 33, 64), (9, 32, 128), (2, 1, 5)]
)
def test_tiles(M: int, N: int, K: int, splits: int, swap: bool, dtype: torch.dtype) -> None:
    """(9, 32, 128): sizes that tiles divide; (2, 1, 5): inputs too few for all parts."""
    tiles = Tiles(block_m=16, block_n=16, block_k=16, swap=swap, splits=splits)
    parts = check(M, N, K, dtype, context_of(N, K, tiles, dtype))
    assert len(parts) == -(-K // -(-K // splits))


def test_a_tile_of_more_rows_than_there_are_and_of_fewer() -> None:
    for block_m in (32, 64):
        tiles = Tiles(block_m=block_m, block_n=32, block_k=32, splits=2)
        check(37, 20, 70, torch.float32, context_of(20, 70, tiles, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "K"), [(1, 1), (24, 48), (33, 40), (8, 64), (101, 7)])
def test_one_row(N: int, K: int, dtype: torch.dtype) -> None:
    tiles = Tiles(block_m=1, block_n=4, block_k=64)
    check(1, N, K, dtype, context_of(N, K, tiles, dtype))


@pytest.mark.parametrize("M", [0, 1, 5])
def test_the_library(M: int) -> None:
    context = context_of(24, 40, None, torch.float32)
    assert len(check(M, 24, 40, torch.float32, context)) == 1


@pytest.mark.parametrize("M", [0, 1, 2, 20, 65, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_guessed(M: int, dtype: torch.dtype) -> None:
    """No rows at all too, which a replica without work has."""
    name = str(dtype).removeprefix("torch.")
    book = TileTable(dtype=name, item_size=dtype.itemsize, shared_bytes=100_000)
    context = KernelContext(workspace=Workspace(DEVICE), tiles=book, pdl=False, num_cores=2)
    check(M, 40, 24, dtype, context)


def test_depth_is_split_where_columns_are_few() -> None:
    tiles = TileTable(dtype="float16", item_size=2, shared_bytes=100_000).linear(24, 600, 3)
    assert tiles is not None
    assert tiles.splits > 1
    small = dataclasses.replace(tiles, block_k=64)
    check(3, 24, 600, torch.float16, context_of(24, 600, small, torch.float16))


@pytest.mark.parametrize("M", [0, 1, 2, 20, 65, 200])
@pytest.mark.parametrize("tuned", [True, False])
def test_fp32_of_shorter_inputs(M: int, tuned: bool) -> None:
    """To fp32's tolerance, also where the library's GEMM would be taken."""
    table = {linear_key(40, 24, "float16"): {1: None}} if tuned else None
    book = TileTable(dtype="float16", item_size=2, shared_bytes=100_000, linear=table)
    context = KernelContext(workspace=Workspace(DEVICE), tiles=book, pdl=False, num_cores=2)
    check(M, 40, 24, torch.float16, context, out=torch.float32)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize(
    ("block", "N", "K", "dtype"),
    [
        ((16, 32), 48, 96, torch.float32),
        ((48, 96), 48, 192, torch.float16),
        ((32, 16), 64, 48, torch.float32),
        (ROWS, 33, 72, torch.float16),
    ],
    ids=str,
)
def test_weights_of_eight_bits(
    block: tuple[int, int], N: int, K: int, dtype: torch.dtype, splits: int, swap: bool
) -> None:
    """Parts end where tiles do, so that each step has one scale."""
    tiles = Tiles(block_m=16, block_n=32, block_k=32, swap=swap, splits=splits)
    context = context_of(N, K, tiles, dtype, FP8_NAME)
    step = min(32, block[1] & -block[1]) if block[1] else 32
    depth = triton.cdiv(triton.cdiv(K, splits), step) * step
    assert len(check(5, N, K, dtype, context, block=block)) == triton.cdiv(K, depth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("block", "N", "K"), [((16, 32), 32, 64), ((16, 48), 16, 144), (ROWS, 33, 40)], ids=str
)
def test_one_row_of_weights_of_eight_bits(
    block: tuple[int, int], N: int, K: int, dtype: torch.dtype
) -> None:
    tiles = Tiles(block_m=1, block_n=4, block_k=64)
    check(1, N, K, dtype, context_of(N, K, tiles, dtype, FP8_NAME), block=block)


@pytest.mark.parametrize("M", [0, 1, 20, 70])
def test_what_is_guessed_for_weights_of_eight_bits(M: int) -> None:
    """Never the library, and not what stands for wider ones."""
    wide = Tiles(block_m=32, block_n=32, block_k=32)
    context = context_of(48, 64, wide, torch.float16)
    check(M, 48, 64, torch.float16, context, block=(16, 32))
    check(M, 48, 64, torch.float16, context, block=(16, 32), out=torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("block", [(128, 128), (64, 32), ROWS], ids=str)
@pytest.mark.parametrize("M", [1, 2, 8, 33, 64, 65, 256, 500])
@pytest.mark.parametrize(("N", "K"), [(5120, 2048), (2048, 4096), (384, 2048), (12288, 4096)])
def test_real_shapes_of_eight_bits(N: int, K: int, M: int, block: tuple[int, int]) -> None:
    context = make_context(torch.device("cuda"), torch.bfloat16)
    check(M, N, K, torch.bfloat16, context, device="cuda", block=block)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(30))
def test_random_shapes_of_eight_bits(seed: int) -> None:
    """Of sizes, blocks and tiles that a model, a layout or a tune may ask for."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    block = draw.choice([(128, 128), (128, 128), (64, 128), (32, 64), (16, 16), (96, 48), ROWS])
    unit = draw.choice([17, 64, 96]) if block == ROWS else math.lcm(*block)
    N, K, M = draw.randint(1, 12) * unit, draw.randint(1, 12) * unit, draw.randint(1, 300)
    tiles = Tiles(
        block_m=draw.choice([16, 32, 64, 128]),
        block_n=draw.choice([16, 32, 64, 128]),
        block_k=draw.choice([32, 64, 128]),
        warps=draw.choice([4, 8]),
        stages=draw.choice([2, 3]),
        swap=draw.choice([False, True]),
        splits=draw.choice([1, 1, 2, 4]),
    )
    if draw.random() < 0.2:
        M, tiles = 1, Tiles(block_m=1, block_n=draw.choice([2, 8, 16]), block_k=64)
    context = context_of(N, K, tiles, torch.bfloat16, FP8_NAME)
    context = dataclasses.replace(context, pdl=draw.choice([False, True]))
    check(M, N, K, torch.bfloat16, context, device="cuda", block=block)


@pytest.mark.gpu
@pytest.mark.parametrize("M", [1, 2, 33, 65, 200, 1000, 8192])
@pytest.mark.parametrize(("N", "K"), [(256, 7168), (384, 7168), (64, 2048), (160, 5120)])
def test_real_routers_in_fp32(N: int, K: int, M: int) -> None:
    """DeepSeek's and Kimi's routers: bf16 in, fp32 out."""
    context = make_context(torch.device("cuda"), torch.bfloat16)
    check(M, N, K, torch.bfloat16, context, out=torch.float32, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("M", [1, 2, 8, 33, 64, 65, 256, 1000])
@pytest.mark.parametrize(("N", "K"), [(5120, 2048), (2048, 4096), (128, 2048), (151936, 2048)])
def test_real_shapes(N: int, K: int, M: int, dtype: torch.dtype) -> None:
    """Qwen3-30B-A3B's qkv, o, router and head, on tiles that are shipped or guessed."""
    if N * M > 1 << 26:
        pytest.skip("the fp64 product would not fit; the head sees one row a sequence")
    check(M, N, K, dtype, make_context(torch.device("cuda"), dtype), device="cuda")


@pytest.mark.parametrize("entry", [Tiles(block_m=1, block_n=4, block_k=64), None])
def test_no_rows(entry: Tiles | None) -> None:
    """A rank whose share of the tokens is empty, whatever the table says of few."""
    assert len(check(0, 24, 40, torch.float32, context_of(24, 40, entry, torch.float32))) == 1
