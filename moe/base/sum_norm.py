"""Sum of parts + residual + norm, one launch, which may give the norm in eight bits too, and a
router's logits of it.

Owns the sum of whatever kernels before it left in parts (split-K partials, routes of a token) and
the norm that follows. Does not know what the parts are.
T tokens, S parts, M more of them, H hidden, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.quantize_rows import store_quantized
from moe.base.quantized import Quantized, split_quantized

# From so many tokens on, memory traffic counts more than one more round trip.
_MANY_TOKENS = 256
# Columns of one program where nothing is normed.
_MAX_COLUMNS = 1024
# A router's weights are asked for before the parts are there, at most so many by a thread. Each
# program sums and norms its token itself, so not more than run at once.
_ROUTER_WEIGHTS = 64
_ROUTER_WARPS = (4, 16)
_ROUTER_PROGRAMS = 128
# Given any limit, ptxas keeps loads above uses; given none it saves registers by mixing them, which
# costs further round trips to memory.
MAX_REGISTERS = 128


@triton.jit
def load_parts(ptrs, mask, stride_s, S: tl.constexpr):
    """The S parts as a tuple, all in flight at once; to be summed after everything is loaded."""
    parts = ()
    for _ in tl.static_range(S):
        parts = parts + (tl.load(ptrs, mask=mask, other=0.0),)  # noqa: RUF005
        ptrs += stride_s
    return parts


@triton.jit
def add_parts(parts, S: tl.constexpr):
    """Their sum in fp32 from s = 0 upwards."""
    total = parts[0].to(tl.float32)
    for s in tl.static_range(1, S):
        total += parts[s].to(tl.float32)
    return total


@triton.jit
def _weigh_parts(parts, weights, S: tl.constexpr):
    """fp32 products, 0 for a part of weight 0."""
    weighted = ()
    for s in tl.static_range(S):
        product = parts[s].to(tl.float32) * weights[s]
        weighted = weighted + (tl.where(weights[s] != 0.0, product, 0.0),)  # noqa: RUF005
    return weighted


@triton.jit
def _load_read_parts(ptrs, weights, mask, stride_s, S: tl.constexpr):
    """`load_parts` without those of weight 0."""
    parts = ()
    for s in tl.static_range(S):
        is_read = tl.where(weights[s] != 0.0, mask, False)
        parts = parts + (tl.load(ptrs, mask=is_read, other=0.0),)  # noqa: RUF005
        ptrs += stride_s
    return parts


@triton.jit
def rms_norm(x, weight, EPS: tl.constexpr, SIZE: tl.constexpr, DTYPE: tl.constexpr):
    """Norm of the last dimension, 0 where padded: rounded before a weight of DTYPE, and after it;
    before one of fp32, as those of 1 + w are, it is not."""
    mean_square = tl.sum(x * x, axis=-1, keep_dims=True) / SIZE
    scaled = x * tl.rsqrt(mean_square + EPS)
    if weight.dtype == DTYPE:
        scaled = scaled.to(DTYPE).to(tl.float32)
    return (scaled * weight.to(tl.float32)).to(DTYPE)


@triton.jit
def _layer_norm(
    x, weight, bias, is_column, EPS: tl.constexpr, SIZE: tl.constexpr, DTYPE: tl.constexpr
):
    """LayerNorm of the last dimension, 0 where padded, rounded once."""
    mean = tl.sum(x, axis=-1, keep_dims=True) / SIZE
    centred = tl.where(is_column, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=-1, keep_dims=True) / SIZE
    return (centred * tl.rsqrt(variance + EPS) * weight + bias).to(DTYPE)


@triton.jit
def _sum_norm_kernel(
    parts_ptr, weights_ptr, more_ptr, residual_ptr, norm_weight_ptr, norm_bias_ptr,
    out_normed_ptr, out_residual_ptr, values_ptr, scales_ptr, router_ptr, logits_ptr,
    stride_t, stride_s, more_stride_t, more_stride_s,
    EPS: tl.constexpr, SCALE: tl.constexpr, S: tl.constexpr, M: tl.constexpr, H: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, HAS_WEIGHTS: tl.constexpr, SKIP: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, IS_LAYER_NORM: tl.constexpr,
    E: tl.constexpr, BLOCK_E: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token; without a norm some columns of it, with a router of E experts BLOCK_E of them."""
    dtype: tl.constexpr = out_residual_ptr.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    if E > 0:
        columns = tl.arange(0, BLOCK)
        is_column = columns < H
        experts = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
        is_weight = (experts < E)[:, None] & is_column[None, :]
        router_ptrs = router_ptr + experts[:, None] * H + columns[None, :]
        router = tl.load(router_ptrs, mask=is_weight, other=0.0)
        is_stored = is_column & (tl.program_id(1) == 0)
    else:
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        is_column = columns < H
        is_stored = is_column
    if HAS_NORM:
        norm_weight = tl.load(norm_weight_ptr + columns, mask=is_column, other=0.0)
    if IS_LAYER_NORM:
        norm_bias = tl.load(norm_bias_ptr + columns, mask=is_column, other=0.0)
    wait_for_previous(PDL)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + token * H + columns, mask=is_column, other=0.0)
    part_ptrs = parts_ptr + token * stride_t + columns
    if HAS_WEIGHTS:
        weights = load_parts(weights_ptr + token * S, True, 1, S)
        # Not waiting for the weights costs the bytes of parts left out.
        if SKIP:
            parts = _load_read_parts(part_ptrs, weights, is_column, stride_s, S)
        else:
            parts = load_parts(part_ptrs, is_column, stride_s, S)
        parts = _weigh_parts(parts, weights, S)
    else:
        parts = load_parts(part_ptrs, is_column, stride_s, S)
    x = add_parts(parts, S)
    if M > 0:
        more = load_parts(more_ptr + token * more_stride_t + columns, is_column, more_stride_s, M)
        x += add_parts(more, M)
    # Each rounding is one that `residual + update` makes.
    x = x.to(dtype)
    if SCALE != 1:
        x = (x.to(tl.float32) * SCALE).to(dtype)
    if HAS_RESIDUAL:
        x = (residual.to(tl.float32) + x.to(tl.float32)).to(dtype)
    tl.store(out_residual_ptr + token * H + columns, x, mask=is_stored)
    if HAS_NORM:
        if IS_LAYER_NORM:
            normed = _layer_norm(
                x.to(tl.float32), norm_weight.to(tl.float32), norm_bias.to(tl.float32), is_column,
                EPS, H, dtype,
            )  # fmt: skip
        else:
            normed = rms_norm(x.to(tl.float32), norm_weight, EPS, H, dtype)
        tl.store(out_normed_ptr + token * H + columns, normed, mask=is_stored)
        if E > 0:
            products = router.to(tl.float32) * normed.to(tl.float32)[None, :]
            tl.store(logits_ptr + token * E + experts, tl.sum(products, axis=1), mask=experts < E)
            if tl.program_id(1) > 0:
                return
        if GROUP > 0:
            store_quantized(normed, values_ptr, scales_ptr, token, columns, H, GROUP)


def row_warps(block: int, itemsize: int) -> int:
    """Warps for a row of ``block`` elements, each lane loading 16 bytes of it."""
    return min(16, max(1, block * itemsize // 512))


class RouterLogits(NamedTuple):
    """A router's matrix, contiguous and of any type, and where its products with a norm go, fp32
    ``[T, E]``."""

    weight_EH: torch.Tensor
    out_TE: torch.Tensor


def takes_router(num_tokens: int, router_EH: torch.Tensor) -> bool:
    """Whether a norm of so many tokens makes a router's logits too: as long as its programs, of
    which each norms its token again, run at once and hold their weights."""
    E, H = router_EH.shape
    return num_tokens > 0 and _router_warps(_router_block(num_tokens, E), H) <= _ROUTER_WARPS[1]


def _router_block(num_tokens: int, num_experts: int) -> int:
    """Experts of a program."""
    block: int = triton.next_power_of_2(triton.cdiv(num_tokens * num_experts, _ROUTER_PROGRAMS))
    return block


def _router_warps(block_e: int, hidden: int) -> int:
    row: int = triton.next_power_of_2(hidden)
    return max(_ROUTER_WARPS[0], block_e * row // (32 * _ROUTER_WEIGHTS))


def sum_norm(
    parts_TSH: torch.Tensor,
    weights_TS: torch.Tensor | None = None,
    residual_TH: torch.Tensor | None = None,
    norm_weight_H: torch.Tensor | None = None,
    eps: float = 0.0,
    *,
    norm_bias_H: torch.Tensor | None = None,
    more_TMH: torch.Tensor | None = None,
    scale: float = 1.0,
    out_normed: torch.Tensor | None = None,
    out_residual: torch.Tensor | None = None,
    out_quantized: Quantized | None = None,
    router: RouterLogits | None = None,
    pdl: bool = False,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(Σ_s weight · part in fp32 from s = 0 upwards, + Σ_m more) · scale + residual, then RMSNorm.

    A part of weight 0 is left out whatever it holds. The sum is rounded to the model's dtype, that
    of ``out_residual``; where that is not given, of the residual, else of the norm, else of the
    parts. ``out_residual`` may be ``residual_TH``, but not with a router. Without a norm nothing is
    normed.

    Args:
        parts_TSH: any strides over tokens and parts; H contiguous.
        weights_TS: fp32; None for ones.
        norm_bias_H: makes it a LayerNorm.
        more_TMH: further parts, of another buffer and of weight 1.
        out_quantized: takes the norm as `out_normed` does, in eight bits.
        router: multiplied with the norm, where `takes_router`.

    Returns:
        Normed rows (None without a norm) and the new residual, both ``[T, H]``.
    """
    T, S, H = parts_TSH.shape
    if out_residual is None:
        model = next(x for x in (residual_TH, norm_weight_H, parts_TSH) if x is not None)
        out_residual = parts_TSH.new_empty((T, H), dtype=model.dtype)
    if out_normed is None and norm_weight_H is not None:
        out_normed = torch.empty_like(out_residual)
    _assert_given((T, H), out_residual.dtype, residual_TH, out_residual, out_normed)
    _assert_given((T, S), torch.float32, weights_TS)
    _assert_given((H,), None, norm_weight_H, norm_bias_H)
    _assert_parts(parts_TSH, more_TMH)
    if norm_weight_H is None:
        assert norm_bias_H is None and out_quantized is None and router is None
    assert out_quantized is None or out_quantized.shape == (T, H)
    if router is not None:
        assert out_residual is not residual_TH
        _assert_router(router, T, H)
    if T == 0:
        return out_normed, out_residual
    values = scales = None
    group = 0
    if out_quantized is not None:
        values, scales, group = split_quantized(out_quantized)
    block = triton.next_power_of_2(H)
    if norm_weight_H is None:  # programs may share a row
        block = min(block, _MAX_COLUMNS)
    warps, programs = row_warps(block, parts_TSH.itemsize), triton.cdiv(H, block)
    router_EH = out_logits = None
    num_experts = block_e = 0
    if router is not None:
        router_EH, out_logits = router
        num_experts, block_e = len(router_EH), _router_block(T, len(router_EH))
        warps, programs = _router_warps(block_e, H), triton.cdiv(num_experts, block_e)
    _sum_norm_kernel[(T, programs)](
        parts_TSH, weights_TS, more_TMH, residual_TH, norm_weight_H, norm_bias_H,
        out_normed, out_residual, values, scales, router_EH, out_logits,
        parts_TSH.stride(0), parts_TSH.stride(1),
        None if more_TMH is None else more_TMH.stride(0),
        None if more_TMH is None else more_TMH.stride(1),
        EPS=eps, SCALE=scale, S=S, M=0 if more_TMH is None else more_TMH.shape[1], H=H, BLOCK=block,
        GROUP=group,
        HAS_WEIGHTS=weights_TS is not None, SKIP=T >= _MANY_TOKENS,
        HAS_RESIDUAL=residual_TH is not None, HAS_NORM=norm_weight_H is not None,
        IS_LAYER_NORM=norm_bias_H is not None, E=num_experts, BLOCK_E=block_e,
        num_warps=warps,
        maxnreg=MAX_REGISTERS,
        enable_fp_fusion=False,  # multiply, then add: the bits of moe.routes.weighted_sum
        **launch_options(pdl),
    )  # fmt: skip
    return out_normed, out_residual


def _assert_parts(parts_TSH: torch.Tensor, more_TMH: torch.Tensor | None) -> None:
    """Columns of either are neighbours; both are of the same tokens and as wide."""
    T, S, H = parts_TSH.shape
    assert S > 0
    assert parts_TSH.stride(2) == 1 or H == 1
    if more_TMH is not None:
        assert more_TMH.shape[0] == T and more_TMH.shape[2] == H
        assert more_TMH.stride(2) == 1 or H == 1


def _assert_router(router: RouterLogits, T: int, H: int) -> None:
    """It is of these rows, which are few enough."""
    weight_EH, out_TE = router
    _assert_given((len(weight_EH), H), None, weight_EH)
    _assert_given((T, len(weight_EH)), torch.float32, out_TE)
    assert takes_router(T, weight_EH)


def _assert_given(
    shape: tuple[int, ...], dtype: torch.dtype | None, *tensors: torch.Tensor | None
) -> None:
    """Each that is given is contiguous and of the shape, and of the dtype if one is named."""
    for tensor in tensors:
        if tensor is not None:
            assert tensor.shape == shape
            assert dtype is None or tensor.dtype == dtype
            assert tensor.is_contiguous()
