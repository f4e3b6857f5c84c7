"""An order of experts in which no two are equal: integers made of scores and places.

Owns those keys and the choice of groups by them. Does not know what scores are. E experts, G groups
of experts, K experts per token.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def to_keys(scores_E, experts_E, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """Integers that order as (score, lower place first) does: score above, complement of the place
    below. All distinct and above the lowest integer, NaN too; -0 equals 0."""
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
def from_keys(keys_K, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """Scores in fp32 and places of `to_keys`."""
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
def nan_first(scores):
    """NaN with the sign that orders above all numbers."""
    return tl.where(scores == scores, scores, float("nan"))


@triton.jit
def drop_groups(
    keys_E, G: tl.constexpr, KEPT: tl.constexpr, BEST: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_G: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr,
    LOWEST: tl.constexpr,
):  # fmt: skip
    """The keys of experts outside the KEPT best groups become the lowest."""
    groups_G = tl.arange(0, BLOCK_G)
    keys_GE = tl.reshape(keys_E, (BLOCK_G, BLOCK_E // BLOCK_G))
    left_GE = keys_GE
    score_G = tl.zeros((BLOCK_G,), dtype=tl.float32)
    for _ in tl.static_range(BEST):
        best_G = tl.max(left_GE, axis=1)
        left_GE = tl.where(left_GE == best_G[:, None], LOWEST, left_GE)
        value_G, _ = from_keys(best_G, DTYPE, WIDE)
        score_G += value_G
    lowest: tl.constexpr = -(2**63)
    group_keys_G = to_keys(nan_first(score_G), groups_G, tl.float32, True)
    group_keys_G = tl.where(groups_G < G, group_keys_G, lowest)
    left_G = group_keys_G
    last = tl.max(left_G, axis=0)
    for _ in tl.static_range(1, KEPT):
        left_G = tl.where(left_G == last, lowest, left_G)
        last = tl.max(left_G, axis=0)
    kept_GE = tl.where((group_keys_G >= last)[:, None], keys_GE, LOWEST)
    return tl.reshape(kept_GE, (BLOCK_E,))
