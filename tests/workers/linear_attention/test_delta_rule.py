"""The gated delta rule against transformers', token by token and in fp64."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from workers.linear_attention.delta_rule import CHUNK, gated_delta_rule, l2_norm


def draw(B: int, T: int, N: int, D: int, V: int, seed: int = 0) -> list[torch.Tensor]:
    """Queries, keys, values, log-decays, betas and states; keys resemble each other."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    k = l2_norm(normal(B, T, N, D) + 2 * normal(B, 1, N, D))
    q = l2_norm(normal(B, T, N, D)) * D**-0.5
    log_decay = -(torch.rand((B, T, N), generator=rng) ** 4) * 3
    beta = torch.rand((B, T, N), generator=rng)
    return [q, k, normal(B, T, N, V), log_decay, beta, normal(B, N, D, V)]


def token_by_token(drawn: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """In fp64."""
    q, k, v, log_decay, beta, state = (each.double() for each in drawn)
    outputs = []
    for t in range(q.shape[1]):
        state = state * log_decay[:, t].exp()[..., None, None]
        seen = torch.einsum("bnd,bndv->bnv", k[:, t], state)
        new = (v[:, t] - seen) * beta[:, t, :, None]
        state = state + k[:, t, :, :, None] * new[:, :, None]
        outputs.append(torch.einsum("bnd,bndv->bnv", q[:, t], state))
    return torch.stack(outputs, dim=1), state


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("first", [0, 5, CHUNK - 1, 1000])
@pytest.mark.parametrize("T", [1, 2, CHUNK - 1, CHUNK, 3 * CHUNK + 7])
def test_chunks_are_what_tokens_are_one_after_the_other(T: int, first: int) -> None:
    drawn = draw(2, T, 3, 16, 24, seed=T)
    out, state = gated_delta_rule(*drawn, first)
    expected_out, expected_state = token_by_token(drawn)
    assert error(out, expected_out) < 1e-5
    assert error(state, expected_state) < 1e-5


def test_transformers_says_the_same() -> None:
    q, k, v, log_decay, beta, state = draw(2, 90, 4, 32, 16)
    expected, expected_state = torch_recurrent_gated_delta_rule(
        q * 32**0.5, k, v, g=log_decay, beta=beta, initial_state=state, output_final_state=True
    )
    out, own_state = gated_delta_rule(q, k, v, log_decay, beta, state)
    assert error(out, expected.double()) < 1e-5
    assert error(own_state, expected_state.double()) < 1e-5


def test_cuts_at_chunks_change_no_bit() -> None:
    *columns, state = draw(1, 3 * CHUNK, 2, 16, 16)
    whole, last = gated_delta_rule(*columns, state, first=CHUNK - 10)
    outputs = []
    for start, stop in ((0, 10), (10, 10 + 2 * CHUNK), (10 + 2 * CHUNK, 3 * CHUNK)):
        part = [each[:, start:stop] for each in columns]
        out, state = gated_delta_rule(*part, state, first=CHUNK - 10 + start)
        outputs.append(out)
    assert torch.equal(torch.cat(outputs, dim=1), whole)
    assert torch.equal(state, last)
