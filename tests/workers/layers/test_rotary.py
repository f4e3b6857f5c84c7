"""Rows of the rotary tables are worked out when they are needed, with the bits of a whole table."""

import pytest
import torch

from workers.layers import rotary
from workers.layers.rotary import RotaryEmbedding

D, THETA, CPU = 12, 1e4, torch.device("cpu")


def whole(num_positions: int) -> torch.Tensor:
    """Cosines and sines ``[2, num_positions, D]`` in one piece."""
    powers = torch.arange(0, D, 2, dtype=torch.float32) / D
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, 1.0 / THETA**powers).repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


def test_rows_in_pieces_have_the_bits_of_a_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "_ROWS_AT_ONCE", 7)
    tables = RotaryEmbedding(D, 1000, THETA, CPU)
    assert tables.num_ready == 7
    for num_positions, ready in ((7, 7), (8, 14), (3, 14), (501, 504), (1000, 1000)):
        tables.cover(num_positions)
        assert tables.num_ready == ready
        assert torch.equal(torch.stack((tables.cos, tables.sin))[:, :ready], whole(ready))


def test_positions_beyond_the_context_are_nobody_s() -> None:
    with pytest.raises(AssertionError, match="11 of 10"):
        RotaryEmbedding(D, 10, THETA, CPU).cover(11)
