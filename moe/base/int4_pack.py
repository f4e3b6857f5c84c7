"""Numbers of four bits, two in a byte, as they lie in memory: what kernels read.

Of each 32 inputs of a row, byte j holds number j in its low half and number 16 + j in its high
one. So a tile of bytes becomes two tiles of numbers without moving any between threads, and the
inputs that either meets lie in runs of 16. N rows, K inputs, a multiple of 32; "…" experts or
nothing.
"""

from __future__ import annotations

import torch

from moe.base.int4_format import UNIT

_HALF = UNIT // 2


def pack(numbers: torch.Tensor) -> torch.Tensor:
    """Bytes [..., N, K / 2] of numbers from 0 to 15, uint8 [..., N, K]."""
    assert numbers.dtype == torch.uint8
    low, high = numbers.unflatten(-1, (-1, 2, _HALF)).unbind(-2)
    packed: torch.Tensor = low | high << 4
    return packed.flatten(-2)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The numbers, uint8 [..., N, K], of bytes [..., N, K / 2]."""
    halves = packed.unflatten(-1, (-1, _HALF))
    return torch.stack((halves & 15, halves >> 4), dim=-2).flatten(-3)
