"""Activations of eight bits: what kernels of many rows multiply 8-bit weights with.

Owns `Quantized` and its memory. Knows no kernel. T rows, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moe.base.quantize import FP8
from moe.base.workspace import Workspace

GROUP = 128  # columns under one scale, unless the kernel that makes them has fewer at hand

_FEWEST = 16  # columns of a group that room is made for


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """``values`` [T, K], e4m3, and ``scales`` [T, K / group], fp32: a value counts times the scale
    of its group of columns."""

    values: torch.Tensor
    scales: torch.Tensor
    group: int

    def __post_init__(self) -> None:
        rows, columns = self.values.shape
        assert self.values.dtype == FP8 and self.scales.dtype == torch.float32
        assert columns % self.group == 0
        assert self.scales.shape == (rows, columns // self.group)
        assert self.values.is_contiguous() and self.scales.is_contiguous()

    @property
    def shape(self) -> torch.Size:
        """That of the values."""
        return self.values.shape

    def first(self, count: int) -> Quantized:
        """So many rows, in place."""
        return Quantized(self.values[:count], self.scales[:count], self.group)

    def plain(self) -> torch.Tensor:
        """The rows themselves, in fp32."""
        return self.values.float() * self.scales.repeat_interleave(self.group, 1)


def split_quantized(
    rows: torch.Tensor | Quantized,
) -> tuple[torch.Tensor, torch.Tensor | None, int]:
    """Values, scales and group, as kernels take them: plain rows have no scales and the group 0."""
    if isinstance(rows, Quantized):
        return rows.values, rows.scales, rows.group
    return rows, None, 0


def take_quantized(
    workspace: Workspace, name: str, shape: tuple[int, int], group: int = GROUP
) -> Quantized:
    """Memory for rows of ``shape`` that belongs to ``name``.

    The same whatever the group is, and less than rows of 16 bits take: these may use the name too.
    """
    rows, columns = shape
    size = rows * columns
    assert group >= _FEWEST
    start = -(-size // _FEWEST) * _FEWEST  # of the scales
    buffer = workspace.take(name, (start + start // _FEWEST * 4,), torch.uint8)
    scales = buffer[start : start + 4 * (size // group)]
    return Quantized(
        buffer[:size].view(FP8).view(shape),
        scales.view(torch.float32).view(rows, columns // group),
        group,
    )
