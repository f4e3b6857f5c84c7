"""sum_norm against weighted_sum, plain addition and RMSNorm."""

from __future__ import annotations

import pytest
import torch

from moe.base.deferred_sum import DeferredSum, weighted_sum
from moe.base.quantized import GROUP, take_quantized
from moe.base.sum_norm import RouterLogits, sum_norm, takes_router
from moe.base.workspace import Workspace
from tests.moe.builders import interpreted
from tests.moe.fp8 import check_quantized
from workers.layers.norm import RMSNorm

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6


def make_norm(size: int, dtype: torch.dtype, device: str) -> RMSNorm:
    norm = RMSNorm(size, EPS, dtype, torch.device(device))
    torch.nn.init.normal_(norm.weight, mean=1.0)
    return norm


def check(
    T: int, S: int, H: int, dtype: torch.dtype, part_dtype: torch.dtype, device: str,
    *, weighted: bool = False, residual: bool = True, normed: bool = True, s_first: bool = False,
) -> None:  # fmt: skip
    """Sums to the bit (fp32 parts and residuals on any device), norms to a rounding."""
    shape = (S, T, H) if s_first else (T, S, H)
    parts = torch.randn(shape, device=device).to(part_dtype)
    parts = parts.transpose(0, 1) if s_first else parts
    weights = torch.rand(T, S, device=device) if weighted else None
    old = torch.randn(T, H, device=device).to(dtype) if residual else None
    norm = make_norm(H, dtype, device) if normed else None
    out_residual = torch.empty(T, H, dtype=dtype, device=device)
    out = sum_norm(
        parts, weights, old, None if norm is None else norm.weight, EPS, out_residual=out_residual
    )
    ones = torch.ones(T, S, device=device)
    expected = weighted_sum(parts, ones if weights is None else weights, dtype)
    expected = expected if old is None else old + expected
    assert out[1] is out_residual
    if dtype == torch.bfloat16 and device == "cpu":  # the interpreter cuts off, see triton's source
        torch.testing.assert_close(out_residual, expected, rtol=0.02, atol=0.02)
    else:
        assert torch.equal(out_residual, expected)
    if norm is None:
        assert out[0] is None
    else:
        tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(out[0], norm(out_residual), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("T", "S", "H"), [(1, 1, 48), (1, 8, 64), (3, 5, 33), (2, 3, 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows(T: int, S: int, H: int, dtype: torch.dtype, weighted: bool) -> None:
    check(T, S, H, dtype, dtype, DEVICE, weighted=weighted)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_split_k_parts(residual: bool, normed: bool) -> None:
    check(
        5, 4, 48, torch.float16, torch.float32, DEVICE,
        residual=residual, normed=normed, s_first=True,
    )  # fmt: skip


@pytest.mark.parametrize("H", [1024, 1025, 2500])
def test_wide_rows_without_norm(H: int) -> None:
    check(2, 3, H, torch.float16, torch.float32, DEVICE, normed=False, s_first=True)


def test_many_tokens() -> None:
    check(300, 2, 40, torch.float16, torch.float16, DEVICE, weighted=True)


def test_no_tokens() -> None:
    check(0, 2, 40, torch.float16, torch.float16, DEVICE, weighted=True)


@pytest.mark.parametrize("T", [4, 260])
def test_weight_zero_leaves_out(T: int) -> None:
    parts = torch.randn(T, 3, 32, device=DEVICE)
    weights = torch.rand(T, 3, device=DEVICE) + 0.5
    left_out = torch.rand(T, 3, device=DEVICE) < 0.5
    weights[left_out] = 0.0
    clean = parts.masked_fill(left_out.unsqueeze(-1), 0.0)
    parts[left_out] = torch.tensor([torch.nan, torch.inf], device=DEVICE).repeat(16)
    _, out = sum_norm(parts, weights)
    assert torch.equal(out, weighted_sum(clean, weights, torch.float32))


def test_casts_of_the_norm() -> None:
    """Rounded before the weight: other casts agree within a rounding, not in almost all bits."""
    parts = torch.randn(4, 1, 512, device=DEVICE).half()
    norm = make_norm(512, torch.float16, DEVICE)
    normed, residual = sum_norm(parts, None, None, norm.weight, EPS)
    assert normed is not None
    assert (normed == norm(residual)).float().mean() > 0.97


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("S", "M"), [(1, 1), (3, 1), (4, 5)])
@pytest.mark.parametrize("normed", [False, True])
def test_more_parts_of_another_buffer(S: int, M: int, dtype: torch.dtype, normed: bool) -> None:
    """After the weighted ones and in fp32, so that the sum is rounded once."""
    T, H = 5, 40
    parts, weights = torch.randn(T, S, H, device=DEVICE).to(dtype), torch.rand(T, S, device=DEVICE)
    more = torch.randn(M, T, H, device=DEVICE).transpose(0, 1)
    residual = torch.randn(T, H, device=DEVICE).to(dtype)
    norm = make_norm(H, dtype, DEVICE) if normed else None
    out = sum_norm(
        parts, weights, residual, None if norm is None else norm.weight, EPS, more_TMH=more
    )
    total = weighted_sum(parts, weights, torch.float32) + weighted_sum(more, None, torch.float32)
    assert torch.equal(out[1], residual + total.to(dtype))
    if norm is not None:
        torch.testing.assert_close(out[0], norm(out[1]), rtol=2e-3, atol=2e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares a CPU's two ways")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sums_left_to_their_reader(dtype: torch.dtype) -> None:
    """Taken by a kernel and by plain torch, into rows of their own and on top of others."""
    routed = DeferredSum(torch.randn(3, 4, 24).to(dtype), torch.rand(3, 4))
    both = routed.plus(DeferredSum(torch.randn(3, 2, 24)))
    assert routed.plus(None) is routed
    context = interpreted(dtype)
    plain = both.total(dtype)
    assert torch.equal(both.total(dtype, context), plain)
    assert not torch.equal(plain, routed.total(dtype))
    rows = torch.randn(3, 24).to(dtype)
    on_top, ours = rows.clone(), rows.clone()
    both.add_to(on_top, None)
    both.add_to(ours, context)
    assert torch.equal(on_top, rows + plain)
    assert torch.equal(ours, on_top)


def test_residual_in_place() -> None:
    parts, residual = torch.randn(3, 1, 32, device=DEVICE), torch.randn(3, 32, device=DEVICE)
    expected = residual + parts[:, 0]
    _, out = sum_norm(parts, None, residual, out_residual=residual)
    assert out is residual
    assert torch.equal(residual, expected)


def test_dtype_without_out() -> None:
    parts = torch.randn(2, 4, 32, device=DEVICE)
    weight = torch.ones(32, dtype=torch.float16, device=DEVICE)
    normed, residual = sum_norm(parts, None, None, weight, EPS)
    assert normed is not None
    assert normed.dtype == residual.dtype == torch.float16
    assert sum_norm(parts)[1].dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1, 7, 256, 8192])
@pytest.mark.parametrize("H", [2048, 4096, 8192])
@pytest.mark.parametrize(
    ("S", "part_dtype", "weighted", "s_first"),
    [
        (1, torch.bfloat16, False, False),
        (8, torch.bfloat16, True, False),
        (6, torch.float32, False, True),
    ],
)
def test_real_shapes(
    T: int, H: int, S: int, part_dtype: torch.dtype, weighted: bool, s_first: bool
) -> None:
    for normed in (False, True):
        check(
            T, S, H, torch.bfloat16, part_dtype, "cuda",
            weighted=weighted, s_first=s_first, normed=normed,
        )  # fmt: skip


def check_quantized_norm(T: int, S: int, H: int, dtype: torch.dtype) -> None:
    """The norm in eight bits beside the norm, which is what it is without."""
    parts, residual = torch.randn(T, S, H, device=DEVICE), torch.randn(T, H, device=DEVICE)
    norm = make_norm(H, dtype, DEVICE)
    arguments = parts.to(dtype), None, residual.to(dtype), norm.weight, EPS
    out = take_quantized(Workspace(DEVICE), "rows", (T, H))
    normed, total = sum_norm(*arguments, out_quantized=out)
    alone = sum_norm(*arguments)
    assert normed is not None
    assert torch.equal(normed, alone[0])
    assert torch.equal(total, alone[1])
    check_quantized(out, normed)


@pytest.mark.parametrize(("T", "S", "H"), [(1, 1, 128), (3, 2, 384), (2, 8, 256)])
def test_the_norm_in_eight_bits(T: int, S: int, H: int) -> None:
    check_quantized_norm(T, S, H, torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize("S", [1, 8])
@pytest.mark.parametrize("H", [2048, 4096])
def test_real_norms_in_eight_bits(S: int, H: int) -> None:
    check_quantized_norm(1000, S, H, torch.bfloat16)


def check_router(
    T: int, S: int, E: int, H: int, dtype: torch.dtype, router_dtype: torch.dtype
) -> None:
    """Its logits beside the norm, which is what it is without, in eight bits too."""
    parts, residual = torch.randn(T, S, H, device=DEVICE), torch.randn(T, H, device=DEVICE)
    norm = make_norm(H, dtype, DEVICE)
    arguments = parts, None, residual.to(dtype), norm.weight, EPS
    router = (torch.randn(E, H, device=DEVICE) / H**0.5).to(router_dtype)
    logits = torch.full((T, E), torch.nan, device=DEVICE)
    out = take_quantized(Workspace(DEVICE), "rows", (T, H)) if H % GROUP == 0 else None
    assert takes_router(T, router)
    normed, total = sum_norm(*arguments, out_quantized=out, router=RouterLogits(router, logits))
    alone = sum_norm(*arguments)
    assert normed is not None
    # A row's sum of squares is taken by as many threads as there are, in an order of theirs.
    torch.testing.assert_close(normed, alone[0])
    assert torch.equal(total, alone[1])
    expected = normed.double() @ router.double().T
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    if out is not None:
        check_quantized(out, normed)


@pytest.mark.parametrize("router_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("T", "S", "E", "H"), [(1, 1, 16, 128), (3, 2, 5, 256), (2, 4, 33, 48)])
def test_a_router_beside_the_norm(
    T: int, S: int, E: int, H: int, router_dtype: torch.dtype
) -> None:
    check_router(T, S, E, H, torch.float16, router_dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("router_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("T", "E", "H"), [(1, 128, 2048), (8, 128, 2048), (16, 128, 2048), (2, 256, 7168)]
)
def test_real_routers_beside_the_norm(T: int, E: int, H: int, router_dtype: torch.dtype) -> None:
    check_router(T, 4, E, H, torch.bfloat16, router_dtype)


def test_few_programs_make_a_router_s_logits() -> None:
    """As many as run at once, for each norms its token, and rows that its threads can hold."""
    weight = torch.empty(128, 2048, device="meta")
    assert takes_router(1, weight)
    assert takes_router(16, weight)
    assert not takes_router(17, weight)
    assert not takes_router(0, weight)
    assert not takes_router(8, torch.empty(128, 1 << 14, device="meta"))


def test_a_weight_of_fp32_meets_numbers_that_are_not_rounded() -> None:
    """As 1 + w is, of models whose norms have such."""
    x = torch.randn(5, 1, 48, device=DEVICE)
    weight = 1 + torch.randn(48, device=DEVICE)
    model = torch.empty(5, 48, dtype=torch.float16, device=DEVICE)
    normed, _ = sum_norm(x, norm_weight_H=weight, eps=EPS, out_residual=model)
    exact = torch.rms_norm(x[:, 0].half().float(), (48,), weight, EPS).half()
    assert normed is not None
    torch.testing.assert_close(normed, exact, rtol=1e-3, atol=0)
    assert (normed == exact).float().mean() > 0.99
