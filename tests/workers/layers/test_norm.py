"""The norm that many tokens get in eight bits too."""

from __future__ import annotations

import pytest
import torch

from moe.base.deferred_sum import DeferredSum
from moe.base.tiles import MANY_ROWS
from tests.moe.builders import interpreted
from tests.moe.fp8 import check_quantized
from workers.layers.norm import LayerNorm, RMSNorm


def make_norm(size: int, dtype: torch.dtype, *, kernels: bool, quantize: bool = True) -> RMSNorm:
    context = interpreted(dtype) if kernels else None
    norm = RMSNorm(size, 1e-6, dtype, torch.device("cpu"), context, quantize)
    torch.nn.init.normal_(norm.weight, mean=1.0)
    return norm


@pytest.mark.interpreter
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")
@pytest.mark.parametrize("tokens", [3, MANY_ROWS])
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_eight_bits_beside_the_norm(wanted: bool, is_first: bool, tokens: int) -> None:
    """Where they are wanted; the norm is what it is without them, with or without a sum to add."""
    norm = make_norm(128, torch.float16, kernels=True)
    residual_TH = torch.randn(tokens, 128).half()
    update = None if is_first else DeferredSum(torch.randn(tokens, 2, 128).half())
    kept_TH = residual_TH.clone()
    total_TH, normed_TH, quantized_TH, _ = norm.add_for_readers(
        residual_TH, update, in_eight_bits=wanted
    )
    normed_TH = normed_TH.clone()
    if update is None:
        expected = kept_TH, norm(kept_TH)
    else:
        expected = norm.add(kept_TH, update)
    assert torch.equal(total_TH, expected[0])
    assert torch.equal(normed_TH, expected[1])
    assert (quantized_TH is not None) == wanted
    if quantized_TH is not None:
        check_quantized(quantized_TH, normed_TH)


@pytest.mark.parametrize(
    ("size", "dtype", "kernels", "quantize"),
    [
        (128, torch.float16, False, True),
        (128, torch.float32, True, True),
        (96, torch.float16, True, True),
        (128, torch.float16, True, False),
    ],
)
@pytest.mark.interpreter
def test_no_eight_bits(size: int, dtype: torch.dtype, kernels: bool, quantize: bool) -> None:
    """Without kernels, in fp32, of columns that are no whole groups, or where nobody reads them."""
    norm = make_norm(size, dtype, kernels=kernels, quantize=quantize)
    residual_TH = torch.randn(MANY_ROWS, size).to(dtype)
    assert norm.add_for_readers(residual_TH, None, in_eight_bits=True).quantized is None


@pytest.mark.interpreter
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")
@pytest.mark.parametrize("size", [24, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layer_norm(size: int, dtype: torch.dtype) -> None:
    """torch's in fp32, of rows whose mean is far from 0, alone and behind a sum."""
    norms = [
        LayerNorm(size, 1e-2, dtype, torch.device("cpu"), context)
        for context in (None, interpreted(dtype))
    ]
    theirs = torch.nn.LayerNorm(size, 1e-2)
    torch.nn.init.normal_(theirs.weight, mean=1.0)
    torch.nn.init.normal_(theirs.bias)
    x_TH, parts_T2H = (torch.randn(5, size) + 3).to(dtype), torch.randn(5, 2, size).to(dtype)
    for norm in norms:
        norm.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(norm.state_dict())
        wanted_TH = theirs(x_TH.float()).to(dtype)
        torch.testing.assert_close(norm(x_TH).clone(), wanted_TH, rtol=2e-3, atol=1e-5)
        total_TH, normed_TH = norm.add(x_TH.clone(), DeferredSum(parts_T2H))
        wanted_TH = theirs(total_TH.float()).to(dtype)
        torch.testing.assert_close(normed_TH, wanted_TH, rtol=2e-3, atol=1e-5)
        names = [each.name for each in norm.checkpoint_slices("norm.")]
        assert names == ["norm.weight", "norm.bias"]
