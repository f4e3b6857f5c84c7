"""Rows, logits and the judgement that the draw's and the filter's tests share."""

from __future__ import annotations

import dataclasses

import torch

from workers.sampling.philox import vocabulary_words
from workers.sampling.torch_sampler import SamplingRows

# What fp32 rounding may decide: between scores so close (relative), or so near to top_p. The
# oracle's own cumulative sum over 150,000 tokens is off by a few millionths.
SCORE_TIE, MASS_TIE = 5e-6, 1e-5

KINDS = ("normal", "peaked", "few_values", "equal", "tiny", "same_chunk")


def make_logits(kind: str, num_rows: int, vocab_size: int, seed: int) -> torch.Tensor:
    """fp32 logits of a kind: how they are spread is what filters and ties depend on."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(num_rows, vocab_size, generator=generator)
    if kind == "peaked":
        return normal * 6
    if kind == "few_values":
        return (normal * 2).round() * 0.5
    if kind == "equal":
        return torch.full_like(normal, -1.25)
    if kind == "tiny":
        return normal * 1e-3
    if kind == "same_chunk":
        return normal + torch.linspace(15, 0, vocab_size)
    return normal * 2


def make_rows(num_rows: int, seed: int, **params: object) -> SamplingRows:
    """Rows with seeds, sample indices and positions of their own.

    Args:
        params: temperature, top_p, min_p, top_k: a value, or one for each row.
    """
    generator = torch.Generator().manual_seed(seed)

    def column(name: str, default: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(params.get(name, default), dtype=dtype).expand(num_rows).contiguous()

    return SamplingRows(
        temperature_D=column("temperature", 1.0, torch.float32),
        top_p_D=column("top_p", 1.0, torch.float32),
        min_p_D=column("min_p", 0.0, torch.float32),
        top_k_D=column("top_k", 0, torch.int64),
        seed_D=torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator),
        sample_index_D=torch.randint(0, 8, (num_rows,), generator=generator),
        position_D=torch.randint(0, 2**17, (num_rows,), generator=generator),
        suppressed=None,
        any_random=True,
        any_filter=True,
    )


def on(device: str, rows: SamplingRows) -> SamplingRows:
    """The rows with their tensors on a device."""
    moved = {
        field.name: getattr(rows, field.name).to(device)
        for field in dataclasses.fields(rows)
        if field.name.endswith("_D")
    }
    return dataclasses.replace(rows, **moved)


def scaled(logits_V: torch.Tensor, rows: SamplingRows, row: int) -> torch.Tensor:
    """fp32 logits / temperature of one row, as the oracle divides."""
    return logits_V.float() / rows.temperature_D[row].to(logits_V.device)


def mass_before(scaled_V: torch.Tensor, rows: SamplingRows, row: int) -> torch.Tensor:
    """In fp64, the cumulative probability before each token, after min_p and top_k."""
    ordered_V, ids_V = scaled_V.sort(descending=True, stable=True)
    keep_V = ordered_V >= ordered_V[0] + rows.min_p_D[row].log().to(scaled_V.device)
    if rows.top_k_D[row] > 0:
        keep_V[int(rows.top_k_D[row]) :] = False
    probs_V = ordered_V.double().masked_fill(~keep_V, float("-inf")).softmax(0)
    return torch.empty_like(probs_V).scatter_(0, ids_V, probs_V.cumsum(0) - probs_V)


def is_tie(logits_V: torch.Tensor, rows: SamplingRows, row: int, ours: int, theirs: int) -> bool:
    """Whether rounding may decide between two tokens: by their scores, or at the edge of top_p."""
    if min(ours, theirs) < 0 or rows.temperature_D[row] <= 0:
        return False
    scaled_V = scaled(logits_V, rows, row)
    seed, sample_index, position = (
        column[row : row + 1].to(logits_V.device)
        for column in (rows.seed_D, rows.sample_index_D, rows.position_D)
    )
    words_V = vocabulary_words(seed, sample_index, position, logits_V.shape[0])[0]
    uniform_V = ((words_V.float() + 0.5) * 2.0**-32).clamp(max=1.0 - 2.0**-24).double()
    scores_V = scaled_V.double() - (-torch.log1p(-uniform_V)).log()
    gap = float((scores_V[ours] - scores_V[theirs]).abs())
    if gap <= SCORE_TIE * max(1.0, float(scores_V[ours].abs())):
        return True
    edge_V = (mass_before(scaled_V, rows, row) - float(rows.top_p_D[row])).abs() < MASS_TIE
    return bool(edge_V[ours] or edge_V[theirs])


def assert_same_tokens(
    logits_DV: torch.Tensor,
    rows: SamplingRows,
    ours_D: torch.Tensor,
    theirs_D: torch.Tensor,
    max_ties: int = 0,
) -> None:
    """Equal but for ``max_ties`` rows, each of which rounding explains."""
    different = (ours_D.cpu() != theirs_D.cpu()).nonzero().flatten().tolist()
    for row in different:
        ours, theirs = int(ours_D[row]), int(theirs_D[row])
        assert is_tie(logits_DV[row], rows, row, ours, theirs), (row, ours, theirs)
    assert len(different) <= max_ties, different


def reference_support(logits: torch.Tensor, min_p: float, top_k: int, top_p: float) -> set[int]:
    """The ids that may be drawn, by the field's definition, one token at a time."""
    order = sorted(range(len(logits)), key=lambda i: (-float(logits[i]), i))
    probs = logits.double().softmax(-1)
    kept = [i for i in order if probs[i] >= min_p * probs[order[0]] * (1 - 1e-12)]
    kept = kept[:top_k] if top_k else kept
    total, before, support = float(sum(probs[i] for i in kept)), 0.0, set()
    for i in kept:
        if top_p < 1.0 and before / total >= top_p:
            break
        support.add(i)
        before += float(probs[i])
    return support
