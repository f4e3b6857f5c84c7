"""Rotary position embedding (Su et al., 2021), in the half-split form of Llama and Qwen.

Scaled kinds (YaRN, linear, dynamic) are not built; model_config.py refuses them.
"""

from __future__ import annotations

import torch
from torch import nn

_ROWS_AT_ONCE = 1 << 16
"""Rows worked out at once on a CPU, which takes 0.1 s; few models have a longer context."""


class RotaryEmbedding(nn.Module):
    """Cosines and sines for all positions, each computed once in fp32.

    On a CPU, where a long context would take seconds and gigabytes, rows are worked out when
    sequences become so long; elsewhere all are, for graphs are captured with the tables.

    Args:
        head_dim: D, even.
        max_positions: rows of the tables, for positions 0 to max_positions - 1.
        theta: base of the wavelengths.
    """

    def __init__(
        self, head_dim: int, max_positions: int, theta: float, device: torch.device
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.max_positions = max_positions
        self.theta = theta
        self.num_ready = 0
        # Twice `empty`: on the meta device `empty_like` would import sympy, for 0.4 s.
        shape = (max_positions, head_dim)
        self.cos = nn.Buffer(
            torch.empty(shape, dtype=torch.float32, device=device), persistent=False
        )
        self.sin = nn.Buffer(
            torch.empty(shape, dtype=torch.float32, device=device), persistent=False
        )
        if device.type != "meta":  # a plan's tables have no values; to work them out takes seconds
            self.cover(1 if device.type == "cpu" else max_positions)

    def cover(self, num_positions: int) -> None:
        """Have the rows of positions below ``num_positions``, which a step is about to read."""
        is_whole = self.num_ready and self.cos.device.type != "cpu"
        if num_positions <= self.num_ready or is_whole:  # shapes of graphs are rounded up
            return
        assert num_positions <= self.max_positions, f"{num_positions} of {self.max_positions}"
        start, stop = self.num_ready, num_positions
        if self.cos.device.type == "cpu":
            stop = min(-(-num_positions // _ROWS_AT_ONCE) * _ROWS_AT_ONCE, self.max_positions)
        device = self.cos.device
        powers = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device)
        positions = torch.arange(start, stop, dtype=torch.float32, device=device)
        angles = torch.outer(positions, 1.0 / self.theta ** (powers / self.head_dim))
        self.cos[start:stop].unflatten(1, (2, -1)).copy_(angles.cos().unsqueeze(1))
        self.sin[start:stop].unflatten(1, (2, -1)).copy_(angles.sin().unsqueeze(1))
        self.num_ready = stop

    def forward(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines ``[T, 1, D]`` in fp32."""
        return self.cos[positions_T].unsqueeze(1), self.sin[positions_T].unsqueeze(1)


def rotate(x_TND: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor) -> torch.Tensor:
    """Turn each pair (i, i + D/2) of every head by its position's angle."""
    x = x_TND.float()
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos_T1D + turned * sin_T1D).to(x_TND.dtype)
