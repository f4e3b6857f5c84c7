"""Shared experts: kernels against plain torch, slice by slice, in buffers that do not grow."""

from __future__ import annotations

import pytest
import torch

from moe.base.context import KernelContext
from moe.base.fp8_format import Fp8Format
from moe.config import MoEConfig
from moe.shared import SharedExperts
from tests.moe.builders import fill, interpreted, make_weights

pytestmark = pytest.mark.interpreter

H = 40


def make_config(width: int, gated: bool) -> MoEConfig:
    return MoEConfig(
        hidden_size=H,
        intermediate_size=8,
        num_experts=2,
        num_experts_per_tok=1,
        shared_expert_size=width,
        shared_expert_gated=gated,
    )


def make_shared(
    config: MoEConfig,
    dtype: torch.dtype,
    context: KernelContext | None,
    rank: int = 0,
    num_slices: int = 1,
) -> SharedExperts:
    shared = SharedExperts(
        config, slice_rank=rank, num_slices=num_slices, dtype=dtype, device="cpu", context=context
    )
    weights = make_weights(config)
    names = {name for name in weights if name.startswith("shared")}
    assert fill(shared.checkpoint_slices(""), weights) == names
    return shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("num_tokens", "width"), [(0, 24), (1, 24), (3, 17), (70, 48)])
@torch.no_grad()
def test_kernels_equal_plain_torch(
    num_tokens: int, width: int, gated: bool, dtype: torch.dtype
) -> None:
    config, context = make_config(width, gated), interpreted(dtype)
    hidden = torch.randn(num_tokens, H).to(dtype)
    ours = make_shared(config, dtype, context)(hidden).total(torch.float32, context)
    plain = make_shared(config, dtype, None)(hidden).total(torch.float32)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_slices_in_kernels_add_up(gated: bool) -> None:
    config, hidden = make_config(24, gated), torch.randn(5, H)
    added = torch.zeros(5, H)
    for rank in range(3):
        context = interpreted()
        part = make_shared(config, torch.float32, context, rank, 3)
        added += part(hidden).total(torch.float32, context)
    whole = make_shared(config, torch.float32, None)(hidden).total(torch.float32)
    torch.testing.assert_close(added, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("kernels", "block"), [(False, (8, 8)), (False, None), (True, None)])
@torch.no_grad()
def test_8_bit_slices_add_up(kernels: bool, block: tuple[int, int] | None, gated: bool) -> None:
    """Each made of its part of plain weights, against all of them dequantized."""
    config, hidden = make_config(24, gated), torch.randn(5, H)
    fp8 = Fp8Format(block=block, stored="plain")
    weights = make_weights(config)
    added = torch.zeros(5, H)
    plain = make_shared(config, torch.float32, None)
    for rank in range(3):
        context = interpreted() if kernels else None
        part = SharedExperts(
            config, slice_rank=rank, num_slices=3, dtype=torch.float32, device="cpu",
            context=context, weight_format=fp8,
        )  # fmt: skip
        for piece in part.checkpoint_slices(""):
            piece.fill(weights[piece.name][piece.index])
        rows = slice(8 * rank, 8 * rank + 8)
        gate, up = part.w13.plain(torch.float32).split(8)
        plain.w13.values[rows], plain.w13.values[24:][rows] = gate, up
        plain.w2.values[:, rows] = part.w2.plain(torch.float32)
        added += part(hidden).total(torch.float32, context)
    assert not torch.equal(plain.w2.values, make_shared(config, torch.float32, None).w2.values)
    torch.testing.assert_close(added, plain(hidden).total(torch.float32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_what_fits_takes_nothing_more(gated: bool) -> None:
    context = interpreted()
    shared = make_shared(make_config(24, gated), torch.float32, context)
    shared(torch.randn(70, H)).total(torch.float32, context)
    context.workspace.freeze()
    held = context.workspace.num_bytes
    for num_tokens in (70, 33, 1):
        shared(torch.randn(num_tokens, H)).total(torch.float32, context)
    assert context.workspace.num_bytes == held
