"""The kernels at the sizes of Qwen3-Next, on a GPU, against plain torch in fp32."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from workers.linear_attention.delta_rule import CHUNK
from workers.linear_attention.kernels.decode_delta import decode_delta
from workers.linear_attention.kernels.prefill_delta import PrefillWorkspace, prefill_delta
from workers.linear_attention.plain import DeltaWeights, delta_row
from workers.linear_attention.plan import StateRows, plan_rows
from workers.linear_attention.states import LayerStates

pytestmark = pytest.mark.gpu

M, N, D, V, W = 16, 32, 128, 128, 4
C = 2 * M * D + N * V
BF16 = torch.bfloat16


def make_states(count: int) -> LayerStates:
    inputs = torch.randn(count, W, C, device="cuda").to(BF16)
    return LayerStates(torch.randn(count, N, D, V, device="cuda"), inputs)


def make_weights() -> DeltaWeights:
    return DeltaWeights(
        taps_CW=(torch.randn(C, W, device="cuda") / 2).to(BF16),
        rate_N=torch.rand(N, device="cuda").mul_(16).log_(),
        bias_N=torch.randn(N, device="cuda"),
        norm_V=torch.randn(V, device="cuda").to(BF16),
        num_key_heads=M,
        eps=1e-6,
    )


def int32(values: object) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.int32), device="cuda")


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def copied(states: LayerStates) -> LayerStates:
    return dataclasses.replace(
        states, recurrent=states.recurrent.clone(), inputs=states.inputs.clone()
    )


@pytest.mark.parametrize("T", [1, 8, 64])
def test_decodes(T: int) -> None:
    torch.manual_seed(T)
    x, ba = torch.randn(T, C + N * V, device="cuda").to(BF16), torch.randn(T, 2 * N, device="cuda")
    ba, weights, states = ba.to(BF16), make_weights(), make_states(T + 1)
    expected_states = copied(states)
    rows = [
        delta_row(x[t : t + 1].float(), ba[t : t + 1], weights, expected_states, t, t, 100 + t)
        for t in range(T)
    ]
    out = torch.empty(T, N * V, device="cuda", dtype=BF16)
    slots, keeps = int32(range(T)), int32([T] + [-1] * (T - 1))
    positions = int32(range(100, 100 + T))
    decode_delta(
        x[None], ba[None], weights.taps_CW, weights.rate_N, weights.bias_N, weights.norm_V, states,
        slots, slots, keeps, positions, torch.empty(T, N * V, device="cuda"),
        num_key_heads=M, eps=weights.eps, out=out, pdl=True,
    )  # fmt: skip
    assert distance(out, torch.cat(rows)) < 5e-3
    assert distance(states.recurrent[:T], expected_states.recurrent[:T]) < 1e-5
    assert torch.equal(states.recurrent[T], states.recurrent[0])


@pytest.mark.parametrize("counts", [[1000], [300, 1, 64, 700], [17] * 40])
def test_prompts(counts: list[int]) -> None:
    """In programs of few columns and of many, with the same bits."""
    torch.manual_seed(len(counts))
    T, R = sum(counts), len(counts)
    positions = np.array([(37 * row) % 200 for row in range(R)])
    x, ba = torch.randn(T, C + N * V, device="cuda").to(BF16), torch.randn(T, 2 * N, device="cuda")
    ba, weights, states = ba.to(BF16), make_weights(), make_states(R)
    expected_states = copied(states)
    firsts = np.cumsum(counts) - counts
    sources = np.where(positions > 0, np.arange(R), -1)
    expected = torch.cat(
        [
            delta_row(
                x[first : first + count].float(), ba[first : first + count], weights,
                expected_states, int(sources[row]), row, int(positions[row]),
            )
            for row, (first, count) in enumerate(zip(firsts, counts, strict=True))
        ]
    )  # fmt: skip
    of_rows = StateRows(
        sources=sources, targets=np.arange(R), keep_positions=np.zeros(R, np.int64),
        keep_states=np.full(R, -1),
    )  # fmt: skip
    chunks, rows = plan_rows(firsts, positions, np.array(counts), of_rows)
    places = np.concatenate([np.arange(p, p + n) for p, n in zip(positions, counts, strict=True)])

    def take(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device="cuda")

    workspace = PrefillWorkspace(
        take(T, C, dtype=BF16), take(T, N), take(T, N),
        take(len(chunks), N, CHUNK, CHUNK, dtype=BF16),
        take(len(chunks), N, CHUNK, CHUNK, dtype=BF16), take(T, N * V),
    )  # fmt: skip
    begun, found = copied(states), []
    for num_cores in (1, 1 << 20):
        states = copied(begun)
        out = torch.empty(T, N * V, device="cuda", dtype=BF16)
        prefill_delta(
            x[None], ba[None], weights.taps_CW, weights.rate_N, weights.bias_N, weights.norm_V,
            states, int32(np.repeat(sources, counts)), int32(places),
            int32(np.repeat(positions, counts)), int32(chunks), int32(rows), workspace,
            num_key_heads=M, eps=weights.eps, out=out, num_cores=num_cores, pdl=True,
        )  # fmt: skip
        assert distance(out, expected) < 2e-2
        assert distance(states.recurrent, expected_states.recurrent) < 2e-2
        found.append((out, states.recurrent))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
