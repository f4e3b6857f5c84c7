"""The kernel of decodes against plain torch."""

from __future__ import annotations

import pytest
import torch

from tests.workers.linear_attention.test_plain import C, M, N, V, make_states, make_weights
from workers.linear_attention.kernels.decode_delta import decode_delta
from workers.linear_attention.plain import delta_row
from workers.linear_attention.states import LayerStates

pytestmark = pytest.mark.interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = {torch.float32: 1e-5, torch.float16: 4e-3}


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("parts", [1, 3])
def test_it_computes_what_plain_torch_does(dtype: torch.dtype, parts: int) -> None:
    torch.manual_seed(parts)
    positions = [0, 1, 2, 3, 70, 71, 9]
    sources = [-1, 0, 1, 2, 3, 4, 5]
    targets = [6, 0, 7, 2, 3, 8, -1]
    keeps = [-1, 9, -1, -1, 10, -1, -1]
    T = len(positions)
    x, ba = torch.randn(parts, T, C + N * V), torch.randn(parts, T, 2 * N)
    weights, states = make_weights(), make_states(11, dtype)
    own = LayerStates(states.recurrent.clone(), states.inputs.clone())
    expected = torch.zeros(T, N * V, dtype=dtype)
    whole = x.sum(0).to(dtype), ba.sum(0).to(dtype)
    for row, (source, target, first) in enumerate(zip(sources, targets, positions, strict=True)):
        if target >= 0:
            one = (each[row : row + 1] for each in whole)
            expected[row] = delta_row(*one, weights, states, source, target, first)[0]
        if keeps[row] >= 0:
            states.copy(target, keeps[row])
    out = torch.full((T, N * V), torch.nan, dtype=dtype)
    numbers = (
        torch.tensor(each, dtype=torch.int32) for each in (sources, targets, keeps, positions)
    )
    decode_delta(
        x, ba, weights.taps_CW, weights.rate_N, weights.bias_N, weights.norm_V, own, *numbers,
        torch.full((T, N * V), torch.nan), num_key_heads=M, eps=weights.eps, out=out, pdl=False,
    )  # fmt: skip
    limit = {"rtol": SMALL[dtype], "atol": SMALL[dtype]}
    torch.testing.assert_close(out, expected, **limit)
    torch.testing.assert_close(own.recurrent, states.recurrent, **limit)
    for target, position in zip(targets + keeps, positions * 2, strict=True):
        if target >= 0:
            rows = [each % 4 for each in range(max(0, position - 2), position + 1)]
            assert torch.equal(own.inputs[target, rows], states.inputs[target, rows])
