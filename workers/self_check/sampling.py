"""Checks of the draw: the highest logit, and what filters leave.

Owns made-up logits and rows. Knows nothing of models. D rows that draw, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from workers.sampling.torch_sampler import SamplingRows, sample
from workers.sampling.triton_sampler import TritonSampler
from workers.self_check.finding import Finding, count, told
from workers.self_check.setting import Setting

_KEPT = 6  # tokens that filters leave
_MIN_P = 0.07  # of what is kept the last has 0.082 times the first
_RANDOM_ROWS = 8
_DRAWS = 4  # of each random row
# Two tokens closer than logarithms can tell may change places, once in ten thousand draws.
_MAY_DIFFER = 0.25


def check_sampler(sampler: TritonSampler, vocab_size: int, setting: Setting) -> Iterator[Finding]:
    """Greedy rows of every size, and a few random ones."""
    for D in setting.decodes:
        logits_DV, best_DK = made_up_logits(D, vocab_size, setting)
        drawn_D = _draw(sampler, logits_DV, _greedy(D, setting.device))
        yield count(f"greedy draw of {vocab_size}, {told(D)}", drawn_D != best_DK[:, 0])
    yield from _check_random(sampler, vocab_size, setting)


def _check_random(sampler: TritonSampler, vocab_size: int, setting: Setting) -> Iterator[Finding]:
    """Against what is left by top_k, top_p and min_p without the best token, and against the draws
    of plain torch, by the same random numbers."""
    D = min(_RANDOM_ROWS, setting.builder.num_slots)
    logits_DV, best_DK = made_up_logits(D, vocab_size, setting)
    kept_DK = best_DK[:, 1:]
    top_p = _cut(logits_DV[0], int(best_DK[0, 0]), kept_DK[0])
    is_outside, differs = [], []
    for position in range(_DRAWS):
        rows = _random(best_DK[:, 0].contiguous(), top_p, position)
        expected_D = sample(logits_DV.to(torch.float32, copy=True), rows)
        drawn_D = _draw(sampler, logits_DV.clone(), rows)
        is_outside.append((drawn_D[:, None] != kept_DK).all(1))
        differs.append(drawn_D != expected_D)
    what = f"of {vocab_size}, {told(D)}"
    yield count(f"filtered draw {what}, what is kept", torch.cat(is_outside))
    yield count(f"filtered draw {what}, tokens", torch.cat(differs), allowed=_MAY_DIFFER)


def made_up_logits(
    num_rows: int, vocab_size: int, setting: Setting
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [D,V] in the model's type, a rank's share of them as wide as any other's; and the best
    tokens of each row, from the best on, the first or the last of the vocabulary among them.

    All others are equal. Together they are about as likely as the best without the very best.
    """
    device, tp = setting.device, setting.parallel.tp
    few = min(_KEPT + 1, vocab_size - 1)
    heights_K = 5.0 - 0.5 * torch.arange(few, device=device)
    others = heights_K[1:].logsumexp(0) - math.log(vocab_size - few)
    shape = num_rows, -(-vocab_size // tp) * tp
    logits_DV = others.to(setting.dtype).expand(shape).contiguous()[:, :vocab_size]
    firsts_D1 = torch.arange(num_rows, device=device)[:, None] * 31 - 1
    best_DK = (firsts_D1 + torch.arange(few, device=device) * (vocab_size // few)) % vocab_size
    logits_DV.scatter_(1, best_DK, heights_K.to(setting.dtype).expand(num_rows, few))
    return logits_DV, best_DK


def _cut(logits_V: torch.Tensor, suppressed: int, kept_K: torch.Tensor) -> float:
    """A top_p that keeps these tokens, from the best on, and no other."""
    logits_V = logits_V.to(torch.float32, copy=True)
    logits_V[suppressed] = -torch.inf
    mass_K = logits_V.softmax(0)[kept_K]
    return float(mass_K.sum() - mass_K[-1] / 2)


def _draw(sampler: TritonSampler, logits_DV: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    D, device = len(logits_DV), logits_DV.device
    out_D = torch.empty(D, dtype=torch.int32, device=device)
    slots_D = torch.arange(D, dtype=torch.int32, device=device)
    sampler.draw(logits_DV, rows, slots_D, last_token=torch.empty_like(out_D), out_D=out_D)
    return out_D


def _greedy(num_rows: int, device: torch.device) -> SamplingRows:
    floats, ints = (
        torch.zeros(num_rows, dtype=dtype, device=device) for dtype in (torch.float32, torch.int64)
    )
    return SamplingRows(
        temperature_D=floats,
        top_p_D=floats + 1.0,
        min_p_D=floats,
        top_k_D=ints,
        seed_D=ints,
        sample_index_D=ints,
        position_D=ints,
        suppressed=None,
        any_random=False,
        any_filter=False,
    )


def _random(suppressed_D: torch.Tensor, top_p: float, position: int) -> SamplingRows:
    """Rows with top_k, top_p, min_p and all three in turn, each without one token."""
    D, device = len(suppressed_D), suppressed_D.device
    rows_D = torch.arange(D, device=device)
    kind_D = rows_D % 4

    def where(kind: int, value: float, off: float) -> torch.Tensor:
        return torch.where((kind_D == kind) | (kind_D == 3), value, off)

    return SamplingRows(
        temperature_D=torch.ones(D, device=device),
        top_p_D=where(1, top_p, 1.0),
        min_p_D=where(2, _MIN_P, 0.0),
        top_k_D=where(0, _KEPT, 0).long(),
        seed_D=rows_D + 17,
        sample_index_D=torch.zeros_like(rows_D),
        position_D=torch.full_like(rows_D, position),
        suppressed=(rows_D, suppressed_D),
        any_random=True,
        any_filter=True,
    )
