"""Where each number of four bits lies in memory."""

from __future__ import annotations

import pytest
import torch

from moe.base.int4_pack import pack, unpack


def test_a_byte_holds_two_numbers_that_are_16_inputs_apart() -> None:
    numbers = torch.arange(64, dtype=torch.uint8).view(1, 64) % 16
    numbers[0, 16:32] = torch.arange(16).flip(0)
    packed = pack(numbers)
    assert packed.shape == (1, 32)
    assert packed[0, :16].tolist() == [low + 16 * (15 - low) for low in range(16)]
    assert packed[0, 16:].tolist() == [17 * low for low in range(16)]


@pytest.mark.parametrize("shape", [(3, 32), (2, 5, 96), (0, 64)])
def test_unpacking_gives_them_back(shape: tuple[int, ...]) -> None:
    numbers = torch.randint(16, shape, dtype=torch.uint8)
    assert torch.equal(unpack(pack(numbers)), numbers)
