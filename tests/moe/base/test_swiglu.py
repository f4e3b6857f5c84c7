"""swiglu against silu and product in plain torch, rounded where they round."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moe.base.quantized import take_quantized
from moe.base.swiglu import swiglu
from moe.base.workspace import Workspace
from tests.moe.fp8 import check_quantized

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def check(parts: torch.Tensor, dtype: torch.dtype, *, pdl: bool = False) -> None:
    _, T, double = parts.shape
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    gate, up = total.to(dtype).chunk(2, dim=-1)
    out = torch.full((T, double // 2), torch.nan, dtype=dtype, device=parts.device)
    assert swiglu(parts, out_TI=out, pdl=pdl) is out
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(out, F.silu(gate) * up, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("S", "T", "width"), [(1, 1, 1), (1, 3, 40), (2, 5, 17), (4, 2, 64)])
def test_parts(S: int, T: int, width: int, dtype: torch.dtype) -> None:
    """One part in the model's dtype; several in fp32."""
    parts = torch.randn(S, T, 2 * width, device=DEVICE) * 3
    check(parts.to(dtype) if S == 1 else parts, dtype)


@pytest.mark.parametrize("width", [1023, 1024, 1025, 2500])
def test_wide_rows(width: int) -> None:
    check(torch.randn(2, 2, 2 * width, device=DEVICE), torch.float16)


def test_rows_of_a_larger_buffer() -> None:
    parts = torch.randn(3, 8, 100, device=DEVICE)[:, 2:5, 6:86]
    check(parts, torch.float32)


def test_large_gates_neither_overflow_nor_spoil() -> None:
    gates = torch.tensor([-200.0, -90.0, 0.0, 90.0, 200.0], device=DEVICE)
    check(torch.cat((gates, torch.ones_like(gates))).view(1, 1, -1), torch.float32)


def test_no_tokens() -> None:
    check(torch.randn(1, 0, 8, device=DEVICE), torch.float32)


def check_scaled(S: int, T: int, width: int, H: int, dtype: torch.dtype, pdl: bool) -> None:
    """Times a token's own sigmoid."""
    parts = torch.randn(S, T, 2 * width, device=DEVICE)
    hidden, scale = torch.randn(T, H, device=DEVICE), torch.randn(1, H, device=DEVICE) * H**-0.5
    hidden, scale = hidden.to(dtype), scale.to(dtype)
    gate, up = parts.sum(0).chunk(2, dim=-1)
    expected = F.silu(gate) * up * torch.sigmoid(F.linear(hidden.float(), scale.float()))
    out = torch.full((T, width), torch.nan, dtype=dtype, device=DEVICE)
    swiglu(parts, out_TI=out, pdl=pdl, hidden_TH=hidden, scale_1H=scale)
    tolerance = 4 * TOLERANCE[dtype]
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("S", "T", "width", "H"), [(1, 1, 1, 1), (2, 5, 17, 33), (3, 2, 1030, 64)])
def test_scaled(S: int, T: int, width: int, H: int, dtype: torch.dtype) -> None:
    check_scaled(S, T, width, H, dtype, pdl=False)


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1, 256, 8192])
def test_scaled_real_shapes(T: int) -> None:
    """Qwen3-Next's shared expert."""
    check_scaled(2, T, 512, 2048, torch.bfloat16, pdl=True)


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1, 256, 8192])
@pytest.mark.parametrize("S", [1, 4])
def test_real_shapes(S: int, T: int) -> None:
    """Qwen3-8B: I = 12,288."""
    parts = torch.randn(S, T, 2 * 12288, device="cuda")
    check(parts.bfloat16() if S == 1 else parts, torch.bfloat16, pdl=True)


def check_quantized_result(S: int, T: int, width: int, dtype: torch.dtype, *, pdl: bool) -> None:
    """What a plain result would be, in eight bits; rounded to the model's type in between."""
    parts = torch.randn(S, T, 2 * width, device=DEVICE).to(dtype)
    plain = torch.empty(T, width, dtype=dtype, device=DEVICE)
    swiglu(parts, out_TI=plain, pdl=pdl)
    out = take_quantized(Workspace(DEVICE), "inner", (T, width))
    assert swiglu(parts, out_TI=out, pdl=pdl) is out
    check_quantized(out, plain)


@pytest.mark.parametrize(("T", "width"), [(1, 128), (3, 384), (2, 2176)])
def test_a_result_of_eight_bits(T: int, width: int) -> None:
    check_quantized_result(1, T, width, torch.float16, pdl=False)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [512, 12288])
def test_real_results_of_eight_bits(width: int) -> None:
    check_quantized_result(1, 1024, width, torch.bfloat16, pdl=True)
