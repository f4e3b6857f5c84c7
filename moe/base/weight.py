"""A weight matrix as it lies in memory: its values and, where they have eight bits, their scales.

Owns `Weight` and how a module holds one. Knows no file, no format of checkpoints and no kernel.
N outputs, K inputs, n × k blocks of bn × bk values, "…" experts or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from moe.base.tiles import FP8_NAME

# Every number of e4m3, by its bits.
_NUMBERS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """``values`` [..., N, K] and, where their type needs it, ``scales`` fp32 [..., n, k].

    A weight without scales, a plain one, has values of the model's type and no ``block``. With
    scales a value counts times the scale of its block of (bn, bk): (1, K) is a scale a row.
    """

    values: torch.Tensor
    scales: torch.Tensor | None = None
    block: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        assert (self.scales is None) == (self.block is None)
        if self.scales is not None and self.block is not None:
            *leading, rows, columns = self.values.shape
            blocks = rows // self.block[0], columns // self.block[1]
            assert self.scales.shape == (*leading, *blocks), (self.scales.shape, blocks)

    def __getitem__(self, index: int) -> Weight:
        """One expert's part of a weight of several."""
        scales = None if self.scales is None else self.scales[index]
        return Weight(self.values[index], scales, self.block)

    def split(self, sizes: list[int]) -> tuple[Weight, ...]:
        """Views of so many rows each, which must be whole blocks."""
        values = self.values.split(sizes, dim=-2)
        if self.scales is None or self.block is None:
            return tuple(Weight(each) for each in values)
        blocks = [size // self.block[0] for size in sizes]
        scales = self.scales.split(blocks, dim=-2)
        return tuple(Weight(v, s, self.block) for v, s in zip(values, scales, strict=True))

    @property
    def device(self) -> torch.device:
        """That of the values."""
        return self.values.device

    @property
    def kind(self) -> str | None:
        """The name of the values' type where it is not the model's."""
        return None if self.scales is None else FP8_NAME

    @property
    def shape(self) -> torch.Size:
        """That of the values."""
        return self.values.shape

    def plain(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix itself: the values of a plain weight, else a copy in ``dtype``."""
        if self.scales is None or self.block is None:
            return self.values
        *leading, rows, columns = self.scales.shape
        blocks = _floats(self.values).view(*leading, rows, self.block[0], columns, self.block[1])
        return blocks.mul_(self.scales[..., :, None, :, None]).view(self.shape).to(dtype)


def _floats(values: torch.Tensor) -> torch.Tensor:
    """The values in fp32. A CPU looks them up in a quarter of the time of converting them."""
    if values.device.type != "cpu":
        return values.float()
    bits = values.view(torch.uint8).reshape(-1).int()
    return _NUMBERS.index_select(0, bits).view(values.shape)


def held_weight(module: nn.Module, name: str, weight: Weight) -> Weight:
    """The same weight, its tensors made parameters of ``module``: ``{name}_values``,
    ``{name}_scales``."""
    values = nn.Parameter(weight.values, requires_grad=False)
    module.register_parameter(f"{name}_values", values)
    if weight.scales is None:
        return Weight(values)
    scales = nn.Parameter(weight.scales, requires_grad=False)
    module.register_parameter(f"{name}_scales", scales)
    return Weight(values, scales, weight.block)
