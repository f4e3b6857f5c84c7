"""The softmax router's choice, from logits or from their split-K partials.

Owns selection and weights, as moe.router.select_softmax defines them. Does not know how logits
came about or where experts are. T tokens, S parts, E experts, K experts per token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.sum_norm import MAX_REGISTERS, add_parts, load_parts

_TL_DTYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
}


@triton.jit
def _to_keys(scores_E, experts_E, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """Integers that order as (logit, lower expert first) does: logit above, complement of the
    expert's id below. All distinct and above the lowest integer, NaN too; -0 equals 0."""
    scores_E = tl.where(scores_E == 0.0, 0.0, scores_E)
    logits_E = scores_E.to(DTYPE)
    if WIDE:
        bits_E = logits_E.to(tl.int32, bitcast=True)
        ordered_E = tl.where(bits_E < 0, bits_E ^ 0x7FFFFFFF, bits_E).to(tl.int64)
        keys_E = (ordered_E << 32) | (0x7FFFFFFF - experts_E).to(tl.int64)
    else:
        bits_E = logits_E.to(tl.int16, bitcast=True).to(tl.int32)
        ordered_E = tl.where(bits_E < 0, bits_E ^ 0x7FFF, bits_E)
        keys_E = (ordered_E << 16) | (0xFFFF - experts_E)
    return keys_E


@triton.jit
def _from_keys(keys_K, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """Logits in fp32 and experts of `_to_keys`."""
    if WIDE:
        ordered_K = (keys_K >> 32).to(tl.int32)
        bits_K = tl.where(ordered_K < 0, ordered_K ^ 0x7FFFFFFF, ordered_K)
        logits_K = bits_K.to(tl.float32, bitcast=True)
        experts_K = 0x7FFFFFFF - keys_K.to(tl.int32)
    else:
        ordered_K = keys_K >> 16
        bits_K = tl.where(ordered_K < 0, ordered_K ^ 0x7FFF, ordered_K).to(tl.int16)
        logits_K = bits_K.to(DTYPE, bitcast=True).to(tl.float32)
        experts_K = 0xFFFF - (keys_K & 0xFFFF)
    return logits_K, experts_K


@triton.jit
def _topk_kernel(
    logits_ptr, num_valid_ptr, weights_ptr, ids_ptr, stride_s, stride_t,
    S: tl.constexpr, E: tl.constexpr, K: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr,
    RENORMALISE: tl.constexpr, HAS_VALID: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = tl.float32 == DTYPE
    lowest: tl.constexpr = -(2**63) if wide else -(2**31)
    token = tl.program_id(0)
    experts_E, ks = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    is_expert_E = experts_E < E
    wait_for_previous(PDL)
    part_ptrs = logits_ptr + token.to(tl.int64) * stride_t + experts_E
    num_valid = tl.load(num_valid_ptr) if HAS_VALID else 0
    parts = load_parts(part_ptrs, is_expert_E, stride_s, S)
    logits_E = add_parts(parts, S).to(DTYPE)  # transformers' logits have the model's dtype
    scores_E = tl.where(is_expert_E, logits_E.to(tl.float32), float("-inf"))
    highest = tl.max(scores_E, axis=0)
    # NaN and +inf make this NaN, and with it every weight: as softmax does.
    denominator = tl.sum(tl.exp(scores_E - highest), axis=0)
    keys_E = tl.where(is_expert_E, _to_keys(scores_E, experts_E, DTYPE, wide), lowest)
    chosen_K = tl.full((BLOCK_K,), lowest, keys_E.dtype)
    for k in tl.static_range(K):
        best = tl.max(keys_E, axis=0)
        keys_E = tl.where(keys_E == best, lowest, keys_E)
        chosen_K = tl.where(ks == k, best, chosen_K)
    logits_K, ids_K = _from_keys(chosen_K, DTYPE, wide)
    weights_K = tl.where(ks < K, tl.exp(logits_K - highest) / denominator, 0.0)
    if RENORMALISE:
        weights_K = weights_K / tl.sum(weights_K, axis=0)
    if HAS_VALID:
        weights_K = tl.where(token < num_valid, weights_K, 0.0)
        ids_K = tl.where(token < num_valid, ids_K, -1)
    routes_K = token * K + ks
    tl.store(weights_ptr + routes_K, weights_K, mask=ks < K)
    tl.store(ids_ptr + routes_K, ids_K, mask=ks < K)


def topk_softmax(
    logits_parts_STE: torch.Tensor,
    k: int,
    renormalise: bool,
    num_valid: torch.Tensor | None,
    *,
    logits_dtype: torch.dtype,
    out_weights_TK: torch.Tensor | None = None,
    out_ids_TK: torch.Tensor | None = None,
    pdl: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights fp32 and ids int32, both ``[T, K]``: highest logits first, ties to the lower id.

    Parts are summed in fp32 from s = 0 upwards and rounded to ``logits_dtype``. Logits that are not
    finite still choose K distinct experts. Logits so near or so far that their fp32 scores are
    equal still stand in order of logits; select_softmax takes the lower id first.

    Args:
        logits_parts_STE: any strides over parts and tokens; S = 1 for whole logits.
        renormalise: weights of a token add up to 1.
        num_valid: int32 [1] on the device; tokens from there on get ids −1 and weights 0.
    """
    S, T, E = logits_parts_STE.shape
    device = logits_parts_STE.device
    if out_weights_TK is None:
        out_weights_TK = torch.empty((T, k), dtype=torch.float32, device=device)
    if out_ids_TK is None:
        out_ids_TK = torch.empty((T, k), dtype=torch.int32, device=device)
    assert S > 0
    assert 0 < k <= E <= 1 << 15
    assert logits_parts_STE.stride(2) == 1 or E == 1
    assert out_weights_TK.shape == out_ids_TK.shape == (T, k)
    assert out_weights_TK.dtype == torch.float32
    assert out_ids_TK.dtype == torch.int32
    assert out_weights_TK.is_contiguous()
    assert out_ids_TK.is_contiguous()
    assert num_valid is None or num_valid.dtype == torch.int32
    if T > 0:
        # One warp a token: reductions need no barrier, and on 16-bit logits one instruction each.
        _topk_kernel[(T,)](
            logits_parts_STE, num_valid, out_weights_TK, out_ids_TK,
            logits_parts_STE.stride(0), logits_parts_STE.stride(1), S=S, E=E, K=k,
            BLOCK_E=triton.next_power_of_2(E), BLOCK_K=triton.next_power_of_2(k),
            DTYPE=_TL_DTYPES[logits_dtype], RENORMALISE=renormalise,
            HAS_VALID=num_valid is not None, num_warps=1, maxnreg=MAX_REGISTERS,
            **launch_options(pdl),
        )  # fmt: skip
    return out_weights_TK, out_ids_TK
