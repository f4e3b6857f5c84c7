"""Rotary tables: rows are worked out when they are needed, with the bits of a whole table; scalings
are transformers'."""

import dataclasses

import pytest
import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralRotaryEmbedding

from workers.layers import rotary
from workers.layers.rope_spec import LongRopeScaling, RopeSpec, YarnScaling
from workers.layers.rotary import RotaryEmbedding

D, THETA, CPU = 12, 1e4, torch.device("cpu")
SPEC = RopeSpec(dim=D, theta=THETA)


def whole(num_positions: int) -> torch.Tensor:
    """Cosines and sines ``[2, num_positions, D]`` in one piece."""
    powers = torch.arange(0, D, 2, dtype=torch.float32) / D
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, 1.0 / THETA**powers).repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


def test_rows_in_pieces_have_the_bits_of_a_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "_ROWS_AT_ONCE", 7)
    tables = RotaryEmbedding(SPEC, 1000, CPU)
    assert tables.num_ready == 7
    for num_positions, ready in ((7, 7), (8, 14), (3, 14), (501, 504), (1000, 1000)):
        tables.cover(num_positions)
        assert tables.num_ready == ready
        assert torch.equal(torch.stack((tables.cos, tables.sin))[:, :ready], whole(ready))


def test_positions_beyond_the_context_are_nobody_s() -> None:
    with pytest.raises(AssertionError, match="11 of 10"):
        RotaryEmbedding(SPEC, 10, CPU).cover(11)


def test_scaled_tables_are_those_of_transformers() -> None:
    scaling = {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
        "rope_theta": THETA,
    }  # fmt: skip
    config = MixtralConfig(head_dim=D, rope_parameters=scaling, max_position_embeddings=256)
    positions = torch.arange(256)
    expected = MixtralRotaryEmbedding(config)(torch.zeros(1), positions[None])
    yarn = dataclasses.replace(SPEC, scaling=YarnScaling(factor=4.0, original=64))
    for ours, theirs in zip(RotaryEmbedding(yarn, 256, CPU)(positions), expected, strict=True):
        torch.testing.assert_close(ours[:, 0], theirs[0], rtol=1e-6, atol=1e-6)


def test_longrope_has_the_factors_of_the_longest_sequence_that_is_served() -> None:
    scaling = LongRopeScaling(
        original=64,
        short_factors=(2.0,) * 6,
        long_factors=(8.0,) * 6,
        short_amplitude=1.0,
        long_amplitude=1.5,
    )
    spec, positions = dataclasses.replace(SPEC, scaling=scaling), torch.tensor([0, 8, 40])
    for most, factor, amplitude in ((64, 2, 1.0), (65, 8, 1.5)):
        cos, sin = RotaryEmbedding(spec, most, CPU)(positions)
        plain = whole(40 // factor + 1)[:, positions // factor]
        expected = amplitude * plain.unsqueeze(2)
        torch.testing.assert_close(torch.stack((cos, sin)), expected, rtol=1e-6, atol=1e-6)
