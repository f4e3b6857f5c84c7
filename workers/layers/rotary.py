"""Rotary position embedding (Su et al., 2021): tables of cosines and sines, and turning by them.

R dimensions of a head are turned; `workers.layers.rope_frequencies` says how fast.
"""

from __future__ import annotations

import torch
from torch import nn

from workers.layers.rope_frequencies import amplitude, frequencies
from workers.layers.rope_spec import RopeSpec

_ROWS_AT_ONCE = 1 << 16
"""Rows worked out at once on a CPU, which takes 0.1 s; few models have a longer context."""


class RotaryEmbedding(nn.Module):
    """Cosines and sines ``[P, R]`` for all positions, each computed once in fp32. The second half
    of a row repeats the first.

    On a CPU, where a long context would take seconds and gigabytes, rows are worked out when
    sequences become so long; elsewhere all are, for graphs are captured with the tables.

    Args:
        max_positions: rows of the tables, for positions 0 to max_positions - 1; the longest
            sequence that is served, by which a scaling may choose its wavelengths.
    """

    def __init__(self, spec: RopeSpec, max_positions: int, device: torch.device) -> None:
        super().__init__()
        self.spec = spec
        self.max_positions = max_positions
        self.num_ready = 0
        # Twice `empty`: on the meta device `empty_like` would import sympy, for 0.4 s.
        shape = (max_positions, spec.dim)
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
        positions = torch.arange(start, stop, dtype=torch.float32, device=device)
        angles = torch.outer(positions, frequencies(self.spec, self.max_positions, device))
        length = amplitude(self.spec, self.max_positions)
        for table, function in ((self.cos, torch.cos), (self.sin, torch.sin)):
            values = function(angles).mul_(length)
            table[start:stop].unflatten(1, (2, -1)).copy_(values.unsqueeze(1))
        self.num_ready = stop

    def forward(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines ``[T, 1, R]`` in fp32."""
        return self.cos[positions_T].unsqueeze(1), self.sin[positions_T].unsqueeze(1)


def rotate(
    x_TND: torch.Tensor,
    cos_T1R: torch.Tensor,
    sin_T1R: torch.Tensor,
    *,
    interleaved: bool = False,
) -> torch.Tensor:
    """Turn pairs of the leading R dimensions of every head by its position's angles, the rest
    passes: (i, i + R/2), or (2i, 2i + 1) if they are interleaved."""
    R = cos_T1R.shape[-1]
    x = x_TND[..., :R].float()
    if interleaved:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = (each[..., : R // 2] for each in (cos_T1R, sin_T1R))
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
        turned = turned.flatten(-2).to(x_TND.dtype)
    else:
        first, second = x.chunk(2, dim=-1)
        other = torch.cat((-second, first), dim=-1)
        turned = (x * cos_T1R + other * sin_T1R).to(x_TND.dtype)
    return turned if x_TND.shape[-1] == R else torch.cat((turned, x_TND[..., R:]), dim=-1)
