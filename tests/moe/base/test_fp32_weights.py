"""linear_parts over weights of fp32, as routers have them, under rows of 16 bits."""

from __future__ import annotations

import pytest
import torch

from moe.base.context import KernelContext
from moe.base.gemm import linear_parts
from moe.base.tiles import Tiles, TileTable
from moe.base.weight import Weight
from moe.base.workspace import Workspace
from tests.absent_gpu import SHARED_BYTES, compiled
from tests.moe.builders import interpreted

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("M", [0, 1, 2, 20, 65, 200])
@pytest.mark.parametrize(("N", "K"), [(24, 40), (64, 1100)])
def test_products_are_those_of_fp32(M: int, N: int, K: int, dtype: torch.dtype) -> None:
    """Beside the product in fp64; weights rounded to 16 bits would be a thousandfold off."""
    name = str(dtype).removeprefix("torch.")
    book = TileTable(dtype=name, item_size=2, shared_bytes=SHARED_BYTES)
    context = KernelContext(workspace=Workspace(DEVICE), tiles=book, pdl=False, num_cores=2)
    x_MK = torch.randn(M, K, device=DEVICE).to(dtype)
    w_NK = torch.randn(N, K, device=DEVICE) * K**-0.5
    parts = linear_parts(x_MK, Weight(w_NK), context, "router", dtype=torch.float32)
    assert parts.dtype == torch.float32
    torch.testing.assert_close(
        parts.double().sum(0), x_MK.double() @ w_NK.double().T, rtol=2e-6, atol=2e-6
    )


@pytest.mark.interpreter
@pytest.mark.parametrize("swap", [False, True])
def test_either_side_of_the_product(swap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = Tiles(block_m=16, block_n=16, block_k=16, swap=swap, splits=3)
    monkeypatch.setattr(TileTable, "fp32_linear", lambda self, *shape: tiles)
    x_MK, w_NK = torch.randn(17, 90).bfloat16(), torch.randn(33, 90)
    parts = linear_parts(x_MK, Weight(w_NK), interpreted(torch.bfloat16), "router")
    expected = x_MK.double() @ w_NK.double().T
    torch.testing.assert_close(parts.double().sum(0), expected, rtol=2e-6, atol=2e-5)


def test_a_buffer_for_the_most_rows_of_a_power_of_two_holds_those_of_fewer() -> None:
    """Prefills of each power of two are run at the start; see workers.rank.warm_up."""
    book = TileTable(dtype="bfloat16", item_size=2, shared_bytes=SHARED_BYTES)
    for N, K in ((8, 64), (64, 2048), (256, 7168), (512, 4096)):
        rows = [book.fp32_linear(N, K, M).splits * M for M in range(1, 4097)]
        for power in range(12):
            assert max(rows[: 1 << power]) <= max(rows[(1 << at) - 1] for at in range(power + 1))


@pytest.mark.processes
def test_compiles() -> None:
    """For a Hopper GPU, and fits it."""
    kernels = compiled("tests.moe.base.compile_fp32_weights")
    assert len(kernels) == 10
