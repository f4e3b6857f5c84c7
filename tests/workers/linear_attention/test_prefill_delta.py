"""The kernels of prompts against plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.workers.linear_attention.test_plain import C, M, N, V, make_states, make_weights
from workers.linear_attention.delta_rule import CHUNK
from workers.linear_attention.kernels.prefill_delta import PrefillWorkspace, prefill_delta
from workers.linear_attention.plain import delta_row
from workers.linear_attention.plan import plan_rows
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
    T, padding = sum(counts), 5
    x, ba = torch.randn(parts, T, C + N * V), torch.randn(parts, T, 2 * N)
    weights, states = make_weights(), make_states(7, dtype)
    own = LayerStates(states.recurrent.clone(), states.inputs.clone())
    whole = x.sum(0).to(dtype), ba.sum(0).to(dtype)
    firsts = np.cumsum(counts) - counts
    expected = []
    for slot, position, first, count in zip(slots, positions, firsts, counts, strict=True):
        row = (each[first : first + count] for each in whole)
        source = slot if position else -1
        expected.append(delta_row(*row, weights, states, source, slot, position))
    chunks, rows = plan_rows(firsts, np.array(positions), np.array(counts), np.array(slots))
    chunks = np.pad(chunks, ((0, 2), (0, 0)))
    rows = np.pad(rows, ((0, 2), (0, 0)))
    starts = np.repeat(positions, counts)
    places = np.concatenate([np.arange(p, p + n) for p, n in zip(positions, counts, strict=True)])
    sources = np.repeat(np.where(np.array(positions) > 0, slots, -1), counts)
    columns = (torch.from_numpy(each.astype(np.int32)) for each in (sources, places, starts))
    tables = torch.from_numpy(chunks), torch.from_numpy(rows)
    out = torch.full((T, N * V), torch.nan, dtype=dtype)
    prefill_delta(
        x, ba, weights.taps_CW, weights.rate_N, weights.bias_N, weights.norm_V, own, *columns,
        *tables, make_workspace(T, len(chunks), dtype), num_key_heads=M, eps=weights.eps, out=out,
        pdl=False,
    )  # fmt: skip
    limit = {"rtol": SMALL[dtype], "atol": SMALL[dtype]}
    torch.testing.assert_close(out, torch.cat(expected), **limit)
    torch.testing.assert_close(own.recurrent, states.recurrent, **limit)
    for slot, position, count in zip(slots, positions, counts, strict=True):
        last = range(max(0, position + count - 3), position + count)
        for place in last:
            assert torch.equal(own.inputs[slot, place % 4], states.inputs[slot, place % 4])
    assert padding
