"""The kernels of prompts against plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.workers.linear_attention.test_plain import C, M, N, V, make_states, make_weights
from workers.linear_attention.delta_rule import CHUNK
from workers.linear_attention.kernels.prefill_delta import PrefillWorkspace, prefill_delta
from workers.linear_attention.plain import delta_row
from workers.linear_attention.plan import StateRows, plan_rows
from workers.linear_attention.states import LayerStates

pytestmark = pytest.mark.interpreter

SMALL = {torch.float32: 2e-5, torch.float16: 2e-2}


def make_workspace(T: int, chunks: int, dtype: torch.dtype) -> PrefillWorkspace:
    """Of what others left there."""
    numbers = {"dtype": torch.float32}
    return PrefillWorkspace(
        torch.full((T, C), torch.nan, dtype=dtype),
        torch.full((T, N), torch.nan, **numbers),
        torch.full((T, N), torch.nan, **numbers),
        torch.full((chunks, N, CHUNK, CHUNK), torch.nan, dtype=dtype),
        torch.full((chunks, N, CHUNK, CHUNK), torch.nan, dtype=dtype),
        torch.full((T, N * V), torch.nan, **numbers),
    )


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("parts", [1, 2])
def test_they_compute_what_plain_torch_does(dtype: torch.dtype, parts: int) -> None:
    """Rows that begin and end anywhere, one of a single token, and rows of padding behind."""
    torch.manual_seed(parts)
    positions, counts = [0, 5, CHUNK, 130, 2], [CHUNK + 7, 3, 2 * CHUNK, 30, 1]
    slots = [3, 0, 1, 4, 6]
    sources = [-1, 7, 1, 4, 6]  # one begins from a kept state
    keep_positions, keeps = [CHUNK, 0, 3 * CHUNK, 0, 0], [8, -1, 9, -1, -1]
    T, padding = sum(counts), 5
    x, ba = torch.randn(parts, T, C + N * V), torch.randn(parts, T, 2 * N)
    weights, states = make_weights(), make_states(10, dtype)
    own = LayerStates(states.recurrent.clone(), states.inputs.clone())
    whole = x.sum(0).to(dtype), ba.sum(0).to(dtype)
    firsts = np.cumsum(counts) - counts
    expected = []
    columns = zip(sources, slots, positions, firsts, counts, keep_positions, keeps, strict=True)
    for source, slot, position, first, count, keep_position, keep in columns:
        stop = first + count
        if keep >= 0:
            middle = first + keep_position - position
            piece = (each[first:middle] for each in whole)
            expected.append(delta_row(*piece, weights, states, source, keep, position))
            states.copy(keep, slot)
            first, position, source = middle, keep_position, slot
        if first < stop:
            piece = (each[first:stop] for each in whole)
            expected.append(delta_row(*piece, weights, states, source, slot, position))
    of_rows = StateRows(
        sources=np.array(sources),
        targets=np.array(slots),
        keep_positions=np.array(keep_positions),
        keep_states=np.array(keeps),
    )
    chunks, rows = plan_rows(firsts, np.array(positions), np.array(counts), of_rows)
    chunks = np.pad(chunks, ((0, 2), (0, 0)))
    rows = np.pad(rows, ((0, 2), (0, 0)))
    starts = np.repeat(positions, counts)
    places = np.concatenate([np.arange(p, p + n) for p, n in zip(positions, counts, strict=True)])
    of_tokens = np.repeat(sources, counts), places, starts
    numbers = (torch.from_numpy(each.astype(np.int32)) for each in of_tokens)
    tables = torch.from_numpy(chunks), torch.from_numpy(rows)
    out = torch.full((T, N * V), torch.nan, dtype=dtype)
    prefill_delta(
        x, ba, weights.taps_CW, weights.rate_N, weights.bias_N, weights.norm_V, own, *numbers,
        *tables, make_workspace(T, len(chunks), dtype), num_key_heads=M, eps=weights.eps, out=out,
        num_cores=4, pdl=False,
    )  # fmt: skip
    limit = {"rtol": SMALL[dtype], "atol": SMALL[dtype]}
    torch.testing.assert_close(out, torch.cat(expected), **limit)
    torch.testing.assert_close(own.recurrent, states.recurrent, **limit)
    ends = [position + count for position, count in zip(positions, counts, strict=True)]
    for slot, end in [*zip(slots, ends, strict=True), *zip(keeps, keep_positions, strict=True)]:
        for place in range(max(0, end - 3), end) if slot >= 0 else ():
            assert torch.equal(own.inputs[slot, place % 4], states.inputs[slot, place % 4])
    assert padding
