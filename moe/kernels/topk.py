"""The experts that a router chooses and their weights, from logits or from their split-K partials.

Owns selection and weights of all kinds of routers, as the functions `select_…` of moe.router define
them. Does not know how logits came about or where experts are. T tokens, S parts, E experts, G
groups of experts, K experts per token.

A token's experts lie in BLOCK_G rows of equal length, one a group: an expert's place is its column
in its row, and the order of places is that of ids. Without groups there is one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.sum_norm import MAX_REGISTERS, add_parts, load_parts
from moe.kernels.order import drop_groups, from_keys, nan_first, to_keys

_TL_DTYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKRule:
    """How a router turns a token's logits into `k` experts and their weights.

    Scores are the softmax of the logits or, with `sigmoid`, their sigmoid; a correction bias, where
    the router has one, counts for the choice only. Of `num_groups` groups, the `kept_groups` with
    the highest scores take part; a group's score is the sum of its `group_best` best experts.
    Weights are divided by their sum, or `norm_min` if that is more, where `renormalise`, then
    multiplied by `scale`. A `softcap` c other than 0 makes a sigmoid's logits c · tanh(logit / c).
    With a `mix_distance` weights are those of moe.router's `select_sparsemixer`, which has it of
    `router_jitter_noise`.
    """

    k: int
    sigmoid: bool = False
    renormalise: bool = False
    scale: float = 1.0
    num_groups: int = 1
    kept_groups: int = 1
    group_best: int = 1
    softcap: float = 0.0
    norm_min: float = 0.0
    mix_distance: float | None = None

    def __post_init__(self) -> None:
        assert 0 < self.kept_groups <= self.num_groups
        assert self.k > 0 and self.group_best > 0
        assert self.sigmoid or not self.softcap
        mixes = self.mix_distance is not None
        assert not mixes or not (self.sigmoid or self.renormalise or self.num_groups > 1)


@triton.jit
def _soft_cap(logits, CAP: tl.constexpr):
    """CAP · tanh(logits / CAP), with an error of some 1e-7 · CAP."""
    shrunk = tl.exp(-2.0 * tl.abs(logits) / CAP)
    size = (1.0 - shrunk) / (1.0 + shrunk) * CAP
    return tl.where(logits < 0, -size, size)


@triton.jit
def _mixed_weights(
    logits_E, places_E, is_expert_E, best_K, places_K,
    K: tl.constexpr, BLOCK_K: tl.constexpr, DISTANCE: tl.constexpr,
):  # fmt: skip
    """Of each of the best the softmax among the logits near it, without those before it."""
    ks = tl.arange(0, BLOCK_K)
    weights_K = tl.zeros((BLOCK_K,), dtype=tl.float32)
    is_left_E = is_expert_E
    for k in tl.static_range(K):
        best = tl.sum(tl.where(ks == k, best_K, 0.0), axis=0)
        place = tl.sum(tl.where(ks == k, places_K, 0), axis=0)
        size_E = tl.abs(logits_E)
        # Rounded as torch does: logits of few bits are often just as far.
        distance_E = tl.div_rn(best - logits_E, tl.where(size_E < best, best, size_E))
        near_E = tl.where(is_left_E & ~(distance_E > DISTANCE), tl.exp(logits_E - best), 0.0)
        weights_K = tl.where(ks == k, 1.0 / tl.sum(near_E, axis=0), weights_K)
        is_left_E = is_left_E & (places_E != place)
    return weights_K


@triton.jit
def _topk_kernel(
    logits_ptr, bias_ptr, num_valid_ptr, weights_ptr, ids_ptr, stride_s, stride_t,
    S: tl.constexpr, E: tl.constexpr, K: tl.constexpr,
    G: tl.constexpr, KEPT: tl.constexpr, BEST: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr,
    SIGMOID: tl.constexpr, RENORMALISE: tl.constexpr, SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr, SOFTCAP: tl.constexpr,
    NORM_MIN: tl.constexpr, DISTANCE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token. Softmax orders as logits do: they are chosen by. Scores are where that is not so:
    sigmoids, with a bias, and where some are summed for a group."""
    by_score: tl.constexpr = SIGMOID or HAS_BIAS or (G > 1 and BEST > 1)
    key_dtype: tl.constexpr = tl.float32 if by_score else DTYPE
    wide: tl.constexpr = tl.float32 == key_dtype
    lowest: tl.constexpr = -(2**63) if wide else -(2**31)
    size: tl.constexpr = E // G
    row: tl.constexpr = BLOCK_E // BLOCK_G
    token = tl.program_id(0)
    places_E, ks = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    if G == 1:
        experts_E, is_expert_E = places_E, places_E < E
    else:
        experts_E = places_E // row * size + places_E % row
        is_expert_E = (places_E % row < size) & (places_E // row < G)
    bias_E = tl.load(bias_ptr + experts_E, mask=is_expert_E, other=0.0) if HAS_BIAS else 0.0
    wait_for_previous(PDL)
    part_ptrs = logits_ptr + token.to(tl.int64) * stride_t + experts_E
    num_valid = tl.load(num_valid_ptr) if HAS_VALID else 0
    parts = load_parts(part_ptrs, is_expert_E, stride_s, S)
    logits_E = add_parts(parts, S).to(DTYPE)  # transformers' logits have the model's dtype
    scores_E = tl.where(is_expert_E, logits_E.to(tl.float32), float("-inf"))
    if SIGMOID:
        if SOFTCAP != 0.0:
            scores_E = _soft_cap(scores_E, SOFTCAP)
        scores_E = 1.0 / (1.0 + tl.exp(-scores_E))
        choice_E = nan_first(scores_E + bias_E)
    else:
        highest = tl.max(scores_E, axis=0)
        # NaN and +inf make this NaN, and with it every weight: as softmax does.
        denominator = tl.sum(tl.exp(scores_E - highest), axis=0)
        if by_score:
            scores_E = tl.exp(scores_E - highest) / denominator
            choice_E = nan_first(scores_E + bias_E)
        else:
            choice_E = scores_E
    keys_E = tl.where(is_expert_E, to_keys(choice_E, places_E, key_dtype, wide), lowest)
    if G > 1:
        keys_E = drop_groups(keys_E, G, KEPT, BEST, BLOCK_E, BLOCK_G, key_dtype, wide, lowest)
    chosen_K = tl.full((BLOCK_K,), lowest, keys_E.dtype)
    for k in tl.static_range(K):
        best = tl.max(keys_E, axis=0)
        keys_E = tl.where(keys_E == best, lowest, keys_E)
        chosen_K = tl.where(ks == k, best, chosen_K)
    choice_K, ids_K = from_keys(chosen_K, key_dtype, wide)
    if by_score:
        places_K = tl.where(ks < K, ids_K, 0)
        weights_K = tl.where(ks < K, tl.gather(scores_E, places_K, axis=0), 0.0)
    elif DISTANCE is not None:
        weights_K = _mixed_weights(
            scores_E, places_E, is_expert_E, choice_K, ids_K, K, BLOCK_K, DISTANCE
        )
    else:
        weights_K = tl.where(ks < K, tl.exp(choice_K - highest) / denominator, 0.0)
    if G > 1:
        ids_K = ids_K // row * size + ids_K % row
    if RENORMALISE:
        total = tl.sum(weights_K, axis=0)
        if SIGMOID:  # whose sum may be 0: transformers does so
            total += 1e-20
        if NORM_MIN > 0.0:
            total = tl.maximum(total, NORM_MIN)
        weights_K = weights_K / total
    if SCALE != 1.0:
        weights_K = weights_K * SCALE
    if HAS_VALID:
        weights_K = tl.where(token < num_valid, weights_K, 0.0)
        ids_K = tl.where(token < num_valid, ids_K, -1)
    routes_K = token * K + ks
    tl.store(weights_ptr + routes_K, weights_K, mask=ks < K)
    tl.store(ids_ptr + routes_K, ids_K, mask=ks < K)


def select_experts(
    logits_parts_STE: torch.Tensor,
    rule: TopKRule,
    bias_E: torch.Tensor | None,
    num_valid: torch.Tensor | None,
    *,
    logits_dtype: torch.dtype,
    out_weights_TK: torch.Tensor | None = None,
    out_ids_TK: torch.Tensor | None = None,
    pdl: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights fp32 and ids int32, both ``[T, K]``: best experts first, ties to the lower id, also
    among groups.

    Parts are summed in fp32 from s = 0 upwards and rounded to ``logits_dtype``. Logits that are not
    finite still choose K distinct experts. Logits so near or so far that their fp32 scores are
    equal still stand in order of logits where a softmax is all they are chosen by; select_softmax
    takes the lower id first.

    Args:
        logits_parts_STE: any strides over parts and tokens; S = 1 for whole logits.
        bias_E: fp32, added to the scores for the choice.
        num_valid: int32 [1] on the device; tokens from there on get ids −1 and weights 0.
    """
    S, T, E = logits_parts_STE.shape
    k, groups = rule.k, rule.num_groups
    device = logits_parts_STE.device
    if out_weights_TK is None:
        out_weights_TK = torch.empty((T, k), dtype=torch.float32, device=device)
    if out_ids_TK is None:
        out_ids_TK = torch.empty((T, k), dtype=torch.int32, device=device)
    assert S > 0
    assert E % groups == 0
    assert 0 < k <= E // groups * rule.kept_groups
    assert logits_parts_STE.stride(2) == 1 or E == 1
    _assert_operands(T, E, rule, bias_E, num_valid, out_weights_TK, out_ids_TK)
    if T > 0:
        block_g = triton.next_power_of_2(groups)
        block_e = block_g * triton.next_power_of_2(E // groups)
        assert block_e <= 1 << 15
        # One warp a token: reductions need no barrier, and on 16-bit logits one instruction each.
        _topk_kernel[(T,)](
            logits_parts_STE, bias_E, num_valid, out_weights_TK, out_ids_TK,
            logits_parts_STE.stride(0), logits_parts_STE.stride(1), S=S, E=E, K=k,
            G=groups, KEPT=rule.kept_groups, BEST=min(rule.group_best, E // groups),
            BLOCK_E=block_e, BLOCK_G=block_g, BLOCK_K=triton.next_power_of_2(k),
            DTYPE=_TL_DTYPES[logits_dtype], SIGMOID=rule.sigmoid, RENORMALISE=rule.renormalise,
            SCALE=rule.scale, HAS_BIAS=bias_E is not None, HAS_VALID=num_valid is not None,
            SOFTCAP=rule.softcap, NORM_MIN=rule.norm_min, DISTANCE=rule.mix_distance,
            num_warps=1, maxnreg=MAX_REGISTERS, **launch_options(pdl),
        )  # fmt: skip
    return out_weights_TK, out_ids_TK


def _assert_operands(
    T: int,
    E: int,
    rule: TopKRule,
    bias_E: torch.Tensor | None,
    num_valid: torch.Tensor | None,
    out_weights_TK: torch.Tensor,
    out_ids_TK: torch.Tensor,
) -> None:
    """Shapes and types of what stands beside the logits."""
    assert out_weights_TK.shape == out_ids_TK.shape == (T, rule.k)
    assert out_weights_TK.dtype == torch.float32
    assert out_ids_TK.dtype == torch.int32
    assert out_weights_TK.is_contiguous()
    assert out_ids_TK.is_contiguous()
    assert num_valid is None or num_valid.dtype == torch.int32
    if bias_E is not None:
        assert rule.mix_distance is None
        assert bias_E.shape == (E,) and bias_E.dtype == torch.float32 and bias_E.is_contiguous()
