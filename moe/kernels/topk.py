"""The experts that a router chooses and their weights, from logits or from their split-K partials.

Owns selection and weights of all kinds of routers, as the functions `select_…` of moe.router define
them. Does not know how logits came about or where experts are. T tokens, S parts, E experts, G
groups of experts, K experts per token.

A token's experts lie in BLOCK_G rows of equal length, one a group: an expert's place is its column
in its row, and the order of places is that of ids. Without groups there is one row.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Choice(NamedTuple):
    """Logits, and how `choose` makes a token's experts of them: an argument of kernels.

    Attributes:
        logits: parts [S, T, E], of any strides over parts and tokens.
        bias, num_valid: as in `select_experts`.
        dtype: that the sum of the parts is rounded to.
        sigmoid, renormalise, scale, softcap, norm_min, distance: of the `TopKRule`, as are
            `groups`, `kept` of them, and the `best` experts that a group is judged by.
        block_e, block_g, block_k: places of experts, of groups and of those chosen.
        by_score: scores are what experts are chosen by; else logits are, in whose order the softmax
            is: not so for sigmoids, with a bias, and where some are summed for a group.
        key_dtype, wide, lowest: of the keys that experts are ordered by, of 64 bits if ``wide``.
    """

    logits: torch.Tensor
    bias: torch.Tensor | None
    num_valid: torch.Tensor | None
    stride_s: int
    stride_t: int
    num_parts: tl.constexpr
    num_experts: tl.constexpr
    k: tl.constexpr
    groups: tl.constexpr
    kept: tl.constexpr
    best: tl.constexpr
    block_e: tl.constexpr
    block_g: tl.constexpr
    block_k: tl.constexpr
    dtype: tl.constexpr
    sigmoid: tl.constexpr
    renormalise: tl.constexpr
    scale: tl.constexpr
    softcap: tl.constexpr
    norm_min: tl.constexpr
    distance: tl.constexpr | None
    by_score: tl.constexpr
    key_dtype: tl.constexpr
    wide: tl.constexpr
    lowest: tl.constexpr


@triton.jit
def _experts_at(choice, places):
    """Ids by place."""
    if choice.groups > 1:
        size: tl.constexpr = choice.num_experts // choice.groups
        row: tl.constexpr = choice.block_e // choice.block_g
        places = places // row * size + places % row
    return places


@triton.jit
def _ordered(choice, token, SUMS: tl.constexpr, PDL: tl.constexpr):
    """A token's keys, which order its experts, their scores, with SUMS at least the highest logit
    and the softmax's denominator, and whether it is no padding. With PDL it waits for the logits.
    """
    places_E = tl.arange(0, choice.block_e)
    experts_E = _experts_at(choice, places_E)
    is_expert_E = places_E < choice.num_experts
    if choice.groups > 1:
        row: tl.constexpr = choice.block_e // choice.block_g
        is_expert_E = places_E % row < choice.num_experts // choice.groups
        is_expert_E &= places_E // row < choice.groups
    bias_E = 0.0
    if choice.bias is not None:
        bias_E = tl.load(choice.bias + experts_E, mask=is_expert_E, other=0.0)
    wait_for_previous(PDL)
    part_ptrs = choice.logits + token.to(tl.int64) * choice.stride_t + experts_E
    is_token = token >= 0
    if choice.num_valid is not None:  # asked for beside the logits
        is_token = token < tl.load(choice.num_valid)
    parts = load_parts(part_ptrs, is_expert_E, choice.stride_s, choice.num_parts)
    # transformers' logits have the model's dtype
    logits_E = add_parts(parts, choice.num_parts).to(choice.dtype)
    scores_E = tl.where(is_expert_E, logits_E.to(tl.float32), float("-inf"))
    highest, denominator = 0.0, 1.0
    if choice.sigmoid:
        if choice.softcap != 0.0:
            scores_E = _soft_cap(scores_E, choice.softcap)
        scores_E = 1.0 / (1.0 + tl.exp(-scores_E))
    elif choice.by_score or SUMS:
        highest = tl.max(scores_E, axis=0)
        # NaN and +inf make this NaN, and with it every weight: as softmax does.
        denominator = tl.sum(tl.exp(scores_E - highest), axis=0)
        if choice.by_score:
            scores_E = tl.exp(scores_E - highest) / denominator
    choice_E = nan_first(scores_E + bias_E) if choice.by_score else scores_E
    keys_E = to_keys(choice_E, places_E, choice.key_dtype, choice.wide)
    keys_E = tl.where(is_expert_E, keys_E, choice.lowest)
    if choice.groups > 1:
        keys_E = drop_groups(
            keys_E, choice.groups, choice.kept, choice.best, choice.block_e, choice.block_g,
            choice.key_dtype, choice.wide, choice.lowest,
        )  # fmt: skip
    return keys_E, scores_E, highest, denominator, is_token


@triton.jit
def choose(choice, token, PDL: tl.constexpr):
    """A token's experts [K], best first, and their weights: −1 and 0 for padding."""
    places_E, ks = tl.arange(0, choice.block_e), tl.arange(0, choice.block_k)
    keys_E, scores_E, highest, denominator, is_token = _ordered(choice, token, True, PDL)
    chosen_K = tl.full((choice.block_k,), choice.lowest, keys_E.dtype)
    for k in tl.static_range(choice.k):
        best = tl.max(keys_E, axis=0)
        keys_E = tl.where(keys_E == best, choice.lowest, keys_E)
        chosen_K = tl.where(ks == k, best, chosen_K)
    choice_K, places_K = from_keys(chosen_K, choice.key_dtype, choice.wide)
    if choice.by_score:
        at_K = tl.where(ks < choice.k, places_K, 0)
        weights_K = tl.where(ks < choice.k, tl.gather(scores_E, at_K, axis=0), 0.0)
    elif choice.distance is not None:
        weights_K = _mixed_weights(
            scores_E, places_E, places_E < choice.num_experts, choice_K, places_K,
            choice.k, choice.block_k, choice.distance,
        )  # fmt: skip
    else:
        weights_K = tl.where(ks < choice.k, tl.exp(choice_K - highest) / denominator, 0.0)
    if choice.renormalise:
        total = tl.sum(weights_K, axis=0)
        if choice.sigmoid:  # whose sum may be 0: transformers does so
            total += 1e-20
        if choice.norm_min > 0.0:
            total = tl.maximum(total, choice.norm_min)
        weights_K = weights_K / total
    if choice.scale != 1.0:
        weights_K = weights_K * choice.scale
    ids_K = _experts_at(choice, places_K)
    if choice.num_valid is not None:
        weights_K = tl.where(is_token, weights_K, 0.0)
        ids_K = tl.where(is_token, ids_K, -1)
    return ids_K, weights_K


@triton.jit
def choose_one(choice, token, k):
    """A token's expert number k, −1 for padding, from logits that are there."""
    keys_E, _, _, _, is_token = _ordered(choice, token, False, False)
    best = tl.max(keys_E, axis=0)
    for _ in range(k):
        keys_E = tl.where(keys_E == best, choice.lowest, keys_E)
        best = tl.max(keys_E, axis=0)
    _, place = from_keys(best, choice.key_dtype, choice.wide)
    return tl.where(is_token, _experts_at(choice, place), -1)


@triton.jit
def store_choice(choice, token, weights_ptr, ids_ptr, PDL: tl.constexpr):
    """Choose for one token, and write it down."""
    ids_K, weights_K = choose(choice, token, PDL)
    ks = tl.arange(0, choice.block_k)
    routes_K = token * choice.k + ks
    tl.store(weights_ptr + routes_K, weights_K, mask=ks < choice.k)
    tl.store(ids_ptr + routes_K, ids_K, mask=ks < choice.k)


@triton.jit
def _topk_kernel(choice, weights_ptr, ids_ptr, PDL: tl.constexpr):
    store_choice(choice, tl.program_id(0), weights_ptr, ids_ptr, PDL)


def make_choice(
    logits_parts_STE: torch.Tensor,
    rule: TopKRule,
    bias_E: torch.Tensor | None,
    num_valid: torch.Tensor | None,
    logits_dtype: torch.dtype,
) -> Choice:
    """Of the arguments of `select_experts`."""
    S, _, E = logits_parts_STE.shape
    groups = rule.num_groups
    assert S > 0
    assert E % groups == 0
    assert 0 < rule.k <= E // groups * rule.kept_groups
    assert logits_parts_STE.stride(2) == 1 or E == 1
    assert num_valid is None or num_valid.dtype == torch.int32
    if bias_E is not None:
        assert rule.mix_distance is None
        assert bias_E.shape == (E,) and bias_E.dtype == torch.float32 and bias_E.is_contiguous()
    constants = _constants(S, E, rule, logits_dtype, has_bias=bias_E is not None)
    strides = logits_parts_STE.stride()[:2]
    return Choice(logits_parts_STE, bias_E, num_valid, *strides, **constants)


@functools.cache
def _constants(
    S: int, E: int, rule: TopKRule, logits_dtype: torch.dtype, *, has_bias: bool
) -> dict[str, Any]:
    """The fields of a `Choice` that kernels are compiled for."""
    block_g = triton.next_power_of_2(rule.num_groups)
    block_e = block_g * triton.next_power_of_2(E // rule.num_groups)
    assert block_e <= 1 << 15
    best = min(rule.group_best, E // rule.num_groups)
    by_score = rule.sigmoid or has_bias or (rule.num_groups > 1 and best > 1)
    key_dtype = tl.float32 if by_score else _TL_DTYPES[logits_dtype]
    wide = key_dtype == tl.float32
    values = {
        "num_parts": S,
        "num_experts": E,
        "k": rule.k,
        "groups": rule.num_groups,
        "kept": rule.kept_groups,
        "best": best,
        "block_e": block_e,
        "block_g": block_g,
        "block_k": triton.next_power_of_2(rule.k),
        "dtype": _TL_DTYPES[logits_dtype],
        "sigmoid": rule.sigmoid,
        "renormalise": rule.renormalise,
        "scale": rule.scale,
        "softcap": rule.softcap,
        "norm_min": rule.norm_min,
        "distance": rule.mix_distance,
        "by_score": by_score,
        "key_dtype": key_dtype,
        "wide": wide,
        "lowest": -(2**63) if wide else -(2**31),
    }
    # The interpreter takes a constant for what it holds, but for None.
    return {name: None if it is None else tl.constexpr(it) for name, it in values.items()}


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
    _, T, _ = logits_parts_STE.shape
    device = logits_parts_STE.device
    if out_weights_TK is None:
        out_weights_TK = torch.empty((T, rule.k), dtype=torch.float32, device=device)
    if out_ids_TK is None:
        out_ids_TK = torch.empty((T, rule.k), dtype=torch.int32, device=device)
    assert out_weights_TK.shape == out_ids_TK.shape == (T, rule.k)
    assert out_weights_TK.dtype == torch.float32 and out_ids_TK.dtype == torch.int32
    assert out_weights_TK.is_contiguous() and out_ids_TK.is_contiguous()
    choice = make_choice(logits_parts_STE, rule, bias_E, num_valid, logits_dtype)
    if T > 0:
        # One warp a token: reductions need no barrier, and on 16-bit logits one instruction each.
        _topk_kernel[(T,)](
            choice, out_weights_TK, out_ids_TK,
            num_warps=1, maxnreg=MAX_REGISTERS, **launch_options(pdl),
        )  # fmt: skip
    return out_weights_TK, out_ids_TK
