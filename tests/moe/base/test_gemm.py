"""linear_parts against the product in fp64, on every way a dense GEMM may take."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from moe.base.context import KernelContext, make_context
from moe.base.gemm import linear_parts
from moe.base.tiles import Tiles, TileTable, linear_key
from moe.base.weight import Weight
from moe.base.workspace import Workspace

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
DTYPES = [torch.float32, torch.float16]


def context_of(N: int, K: int, tiles: Tiles | None, dtype: torch.dtype) -> KernelContext:
    """One that knows one shape's tiles, whatever the number of rows."""
    name = str(dtype).removeprefix("torch.")
    book = TileTable(
        dtype=name,
        item_size=dtype.itemsize,
        shared_bytes=100_000,
        linear={linear_key(N, K, name): {1: tiles}},
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
) -> torch.Tensor:
    """The parts, which lie in the workspace and add up to the product."""
    x_MK = torch.randn(M, K, device=device).to(dtype)
    w_NK = (torch.randn(N, K, device=device) * K**-0.5).to(dtype)
    # What an earlier step left must not show.
    context.workspace.take("parts", (8 * M * N,), torch.float32).fill_(torch.nan)
    parts = linear_parts(x_MK, Weight(w_NK), context, "parts", dtype=out)
    buffer = context.workspace.take("parts", (8 * M * N,), torch.float32)
    assert M == 0 or parts.data_ptr() == buffer.data_ptr()
    assert parts.shape[1:] == (M, N)
    out = out or dtype
    assert parts.dtype == (out if len(parts) == 1 else torch.float32)
    torch.testing.assert_close(
        parts.double().sum(0), x_MK.double() @ w_NK.double().T,
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
