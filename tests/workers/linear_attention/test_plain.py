"""A layer between its projections against transformers' module, and cut where one likes."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from workers.linear_attention.delta_rule import CHUNK
from workers.linear_attention.plain import DeltaWeights, delta_row
from workers.linear_attention.states import LayerStates

M, N, D, V, W = 2, 4, 16, 8, 4
C = 2 * M * D + N * V


def make_states(num_states: int, dtype: torch.dtype = torch.float32) -> LayerStates:
    """Of a process that has served others before."""
    recurrent = torch.randn(num_states, N, D, V)
    return LayerStates(recurrent, torch.randn(num_states, W, C).to(dtype))


def make_weights(seed: int = 0) -> DeltaWeights:
    rng = torch.Generator().manual_seed(seed)
    return DeltaWeights(
        taps_CW=torch.randn((C, W), generator=rng) / 2,
        rate_N=torch.rand(N, generator=rng).log(),
        bias_N=torch.randn(N, generator=rng),
        norm_V=torch.randn(V, generator=rng),
        num_key_heads=M,
        eps=1e-6,
    )


def test_transformers_reads_the_same() -> None:
    torch.manual_seed(0)
    config = Qwen3NextConfig(
        hidden_size=32, num_hidden_layers=1, linear_num_key_heads=M, linear_num_value_heads=N,
        linear_key_head_dim=D, linear_value_head_dim=V, layer_types=["linear_attention"],
    )  # fmt: skip
    module = Qwen3NextGatedDeltaNet(config, 0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    weights = DeltaWeights(
        taps_CW=module.conv1d.weight[:, 0],
        rate_N=module.A_log,
        bias_N=module.dt_bias,
        norm_V=module.norm.weight,
        num_key_heads=M,
        eps=config.rms_norm_eps,
    )
    hidden = torch.randn(1, CHUNK + 9, 32)
    with torch.inference_mode():
        projected = module.in_proj_qkvz(hidden), module.in_proj_ba(hidden)
        *qkvz, b, a = (
            each.flatten(2)[0] for each in module.fix_query_key_value_ordering(*projected)
        )
        own = delta_row(torch.cat(qkvz, 1), torch.cat([b, a], 1), weights, make_states(3), -1, 1, 0)
        expected = module(hidden)[0]
        torch.testing.assert_close(module.out_proj(own), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_sequence_may_be_cut_anywhere_and_go_from_state_to_state(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    T, weights = 150, make_weights(seed)
    x, ba = torch.randn(T, C + N * V), torch.randn(T, 2 * N)
    whole = delta_row(x, ba, weights, make_states(1), -1, 0, 0)
    states, source, outputs, first = make_states(5), -1, [], 0
    while first < T:
        stop = min(T, first + rng.choice([1, 1, 2, 3, 40, CHUNK]))
        target = rng.choice([source, rng.randrange(5)]) if source >= 0 else rng.randrange(5)
        kept = (
            None
            if source < 0
            else (states.recurrent[source].clone(), states.inputs[source].clone())
        )
        outputs.append(
            delta_row(x[first:stop], ba[first:stop], weights, states, source, target, first)
        )
        if kept is not None and target != source:  # a state that is left stays as it is
            assert torch.equal(states.recurrent[source], kept[0])
            assert torch.equal(states.inputs[source], kept[1])
        source, first = target, stop
    torch.testing.assert_close(torch.cat(outputs), whole, rtol=1e-4, atol=1e-5)
