"""topk_softmax against select_softmax: ids equal, weights to fp32's tolerance."""

from __future__ import annotations

import pytest
import torch

from moe.config import MoEConfig
from moe.kernels.topk import topk_softmax
from moe.router import select_softmax
from moe.routes import TopK

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def oracle(logits_TE: torch.Tensor, k: int, renormalise: bool) -> TopK:
    config = MoEConfig(
        hidden_size=8,
        intermediate_size=8,
        num_experts=logits_TE.shape[1],
        num_experts_per_tok=k,
        norm_topk_prob=renormalise,
    )
    return select_softmax(logits_TE.float(), None, config)


def check(
    parts_STE: torch.Tensor, k: int, renormalise: bool, dtype: torch.dtype, num_valid: int | None
) -> None:
    count = None
    if num_valid is not None:
        count = torch.tensor([num_valid], dtype=torch.int32, device=parts_STE.device)
    weights, ids = topk_softmax(parts_STE, k, renormalise, count, logits_dtype=dtype)
    total = parts_STE[0].float()
    for part in parts_STE[1:]:
        total = total + part.float()
    expected = oracle(total.to(dtype), k, renormalise)
    last = parts_STE.shape[1] if num_valid is None else num_valid
    assert torch.equal(ids[:last], expected.ids[:last])
    torch.testing.assert_close(weights[:last], expected.weights[:last], rtol=1e-5, atol=1e-7)
    assert (ids[last:] == -1).all()
    assert (weights[last:] == 0.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "E", "k"), [(1, 128, 8), (5, 3, 2), (4, 3, 3), (3, 1, 1), (2, 9, 5)])
@pytest.mark.parametrize("renormalise", [False, True])
def test_logits(T: int, E: int, k: int, dtype: torch.dtype, renormalise: bool) -> None:
    check(torch.randn(1, T, E, device=DEVICE).to(dtype), k, renormalise, dtype, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("S", [2, 7])
def test_parts(S: int, dtype: torch.dtype) -> None:
    check(torch.randn(S, 3, 24, device=DEVICE), 4, True, dtype, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_lower_id(dtype: torch.dtype) -> None:
    logits = torch.randint(-2, 1, (1, 9, 40), device=DEVICE).to(dtype)
    zeros = logits == 0
    logits[zeros & (torch.rand(logits.shape, device=DEVICE) < 0.5)] = -0.0
    check(logits, 8, True, dtype, None)


@pytest.mark.parametrize("num_valid", [0, 1, 3, 4])
def test_padding(num_valid: int) -> None:
    check(torch.randn(1, 4, 16, device=DEVICE), 3, True, torch.float32, num_valid)


def test_padding_that_is_not_finite() -> None:
    logits = torch.randn(1, 3, 16, device=DEVICE)
    logits[:, 2] = torch.nan
    check(logits, 3, True, torch.float32, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_infinity(dtype: torch.dtype) -> None:
    logits = torch.randn(1, 4, 12, device=DEVICE).to(dtype)
    logits[:, :, 2:] = -torch.inf
    check(logits, 4, True, dtype, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_not_finite(dtype: torch.dtype, bad: float, everywhere: bool) -> None:
    """Ids are in range and distinct; weights say that something is wrong, as softmax does."""
    logits = torch.randn(1, 2, 11, device=DEVICE).to(dtype)
    logits[0, 0, slice(None) if everywhere else 4] = bad
    weights, ids = topk_softmax(logits, 5, True, None, logits_dtype=dtype)
    assert ((ids >= 0) & (ids < 11)).all()
    assert all(len(set(row)) == 5 for row in ids.tolist())
    assert weights[0].isnan().all()
    assert torch.equal(ids[1:], oracle(logits[0, 1:], 5, True).ids)


def test_no_tokens() -> None:
    check(torch.randn(2, 0, 16, device=DEVICE), 3, True, torch.float32, None)


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1, 32, 256, 8192])
@pytest.mark.parametrize("E", [128, 512])
@pytest.mark.parametrize("S", [1, 4, 16])
def test_real_shapes(T: int, E: int, S: int) -> None:
    """bf16, whose distinct logits have distinct scores: of so many in fp32 some would not."""
    check(torch.randn(S, T, E, device="cuda"), 8, True, torch.bfloat16, T - T // 5)
