"""Drawing one token a row from its logits, on the device.

Order: suppressed tokens → temperature (0 = greedy) → min_p → top_k → top_p → draw. Before that,
logits_processor.py may change logits. The draw is an exponential race, argmax of p / E with
E ~ Exp(1) from a counter-based generator (philox.py), so a row's token depends on its own logits,
seed, sample index and position alone.
Shapes: D rows that draw, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import torch

from switchyard.worker.link import NOT_FINITE
from workers.sampling.philox import vocabulary_words

_LARGEST_BELOW_ONE = 1.0 - 2.0**-24  # in fp32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRows:
    """Parameters of the rows that draw, on the logits' device; on the host, which kinds there are.

    Attributes:
        temperature_D, top_p_D, min_p_D: fp32.
        top_k_D, seed_D, sample_index_D, position_D: int64; top_k 0 is off.
        suppressed: (row, token id) pairs, two int64 tensors, or None.
        any_random, any_filter: whether some row is not greedy, and whether some such row has
            min_p, top_k or top_p set.
        any_excluded: whether logits that are the lowest finite number stand for excluded tokens.
    """

    temperature_D: torch.Tensor
    top_p_D: torch.Tensor
    min_p_D: torch.Tensor
    top_k_D: torch.Tensor
    seed_D: torch.Tensor
    sample_index_D: torch.Tensor
    position_D: torch.Tensor
    suppressed: tuple[torch.Tensor, torch.Tensor] | None
    any_random: bool
    any_filter: bool
    any_excluded: bool = False


def lowest(logits_DV: torch.Tensor) -> float:
    """The number that marks an excluded token: finite, so that an infinity is the model's own."""
    return torch.finfo(logits_DV.dtype).min


def sample(logits_DV: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """Draw a token for each row.

    Args:
        logits_DV: fp32; changed in place.

    Returns:
        ``[D]`` int64 token ids; NOT_FINITE where a row's logits hold NaN or infinity.
    """
    # NaN and ±inf survive a sum with 0 · x, so one reduction finds them.
    finite_D = (logits_DV * 0.0).sum(dim=-1) == 0.0
    if rows.any_excluded:
        logits_DV.masked_fill_(logits_DV == lowest(logits_DV), float("-inf"))
    if rows.suppressed is not None:
        logits_DV[rows.suppressed] = float("-inf")
    tokens_D = logits_DV.argmax(dim=-1)
    if rows.any_random:
        drawn_D = _draw(logits_DV, rows)
        tokens_D = torch.where(rows.temperature_D > 0.0, drawn_D, tokens_D)
    return torch.where(finite_D, tokens_D, NOT_FINITE)


def _draw(logits_DV: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    greedy_D = rows.temperature_D <= 0.0
    logits_DV = logits_DV / torch.where(greedy_D, 1.0, rows.temperature_D)[:, None]
    if rows.any_filter:
        logits_DV = _filter(logits_DV, rows)
    words_DV = vocabulary_words(
        rows.seed_D, rows.sample_index_D, rows.position_D, logits_DV.shape[1]
    )
    # Words near 2³² round to 1.0, whose E would be infinite and lose against an excluded token.
    uniform_DV = ((words_DV.float() + 0.5) * 2.0**-32).clamp(max=_LARGEST_BELOW_ONE)
    exponential_DV = -torch.log1p(-uniform_DV)
    return (logits_DV - exponential_DV.log()).argmax(dim=-1)


def _filter(logits_DV: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """Set what min_p, then top_k, then top_p exclude to -inf; each acts on what is left.

    Equal logits count in order of their ids.
    """
    sorted_DV, ids_DV = logits_DV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(logits_DV.shape[1], device=logits_DV.device)
    top_k_D = torch.where(rows.top_k_D > 0, rows.top_k_D, logits_DV.shape[1])
    # p >= min_p * p_max, in logarithms; log 0 = -inf switches it off.
    keep_DV = sorted_DV >= sorted_DV[:, :1] + rows.min_p_D.log()[:, None]
    keep_DV &= rank_V < top_k_D[:, None]
    probs_DV = sorted_DV.masked_fill(~keep_DV, float("-inf")).softmax(dim=-1)
    before_DV = probs_DV.cumsum(dim=-1) - probs_DV
    off_D1 = (rows.top_p_D >= 1.0)[:, None]
    keep_DV &= (before_DV < rows.top_p_D[:, None]) | off_D1
    sorted_DV = sorted_DV.masked_fill(~keep_DV, float("-inf"))
    return torch.empty_like(sorted_DV).scatter_(1, ids_DV, sorted_DV)
