"""A weight matrix as it lies in memory: its values and, where they have fewer bits than the model's
type, their scales.

Owns `Weight` and how a module holds one. Knows no file, no format of checkpoints and no kernel.
N outputs, K inputs, n × k blocks of bn × bk values, "…" experts or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from moe.base.int4_format import MIDDLE
from moe.base.int4_pack import unpack
from moe.base.tiles import FP8_NAME, INT4_NAME

# Every number of e4m3, by its bits.
_NUMBERS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """``values`` [..., N, K] and, where their type needs it, ``scales`` [..., n, k].

    A weight without scales, a plain one, has values of the model's type, or of fp32, and no
    ``block``. With scales a value counts times the scale of its block of (bn, bk): (1, K) is a
    scale a row. Values of four bits are packed in bytes [..., N, K / 2] (`int4_pack`) and have
    blocks of one row; their zero points, `MIDDLE` without ``zeros`` (bytes of the scales' shape),
    are subtracted before. The last rows of a matrix, not of several, may be less than a block.
    """

    values: torch.Tensor
    scales: torch.Tensor | None = None
    block: tuple[int, int] | None = None
    zeros: torch.Tensor | None = None

    def __post_init__(self) -> None:
        assert (self.scales is None) == (self.block is None)
        assert self.zeros is None or self.kind == INT4_NAME
        if self.scales is not None and self.block is not None:
            *leading, rows, columns = self.shape
            blocks = num_blocks(rows, self.block[0]), columns // self.block[1]
            assert rows % self.block[0] == 0 or not leading, (self.shape, self.block)
            assert self.scales.shape == (*leading, *blocks), (self.scales.shape, blocks)
            assert self.zeros is None or self.zeros.shape == self.scales.shape
            assert self.block[0] == 1 or self.kind != INT4_NAME

    def __getitem__(self, index: int) -> Weight:
        """One expert's part of a weight of several."""
        scales = None if self.scales is None else self.scales[index]
        zeros = None if self.zeros is None else self.zeros[index]
        return Weight(self.values[index], scales, self.block, zeros)

    def split(self, sizes: list[int]) -> tuple[Weight, ...]:
        """Views of so many rows each, which must be whole blocks but for the last's."""
        values = self.values.split(sizes, dim=-2)
        if self.scales is None or self.block is None:
            return tuple(Weight(each) for each in values)
        assert not any(size % self.block[0] for size in sizes[:-1]), (sizes, self.block)
        blocks = [num_blocks(size, self.block[0]) for size in sizes]
        scales = self.scales.split(blocks, dim=-2)
        zeros = [None] * len(sizes) if self.zeros is None else self.zeros.split(blocks, dim=-2)
        parts = zip(values, scales, zeros, strict=True)
        return tuple(Weight(v, s, self.block, z) for v, s, z in parts)

    @property
    def device(self) -> torch.device:
        """That of the values."""
        return self.values.device

    @property
    def kind(self) -> str | None:
        """The name of the values' type where it is not the model's."""
        if self.scales is None:
            return None
        return INT4_NAME if self.values.dtype == torch.uint8 else FP8_NAME

    @property
    def shape(self) -> torch.Size:
        """That of the matrix, or of all experts' matrices."""
        shape = self.values.shape
        return torch.Size((*shape[:-1], 2 * shape[-1])) if self.kind == INT4_NAME else shape

    def plain(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix itself: the values of a plain weight, else a copy in ``dtype``."""
        if self.scales is None or self.block is None:
            return self.values
        rows, columns = self.shape[-2], self.scales.shape[-1]
        blocks = self._floats().view(*self.shape[:-1], columns, self.block[1])
        if self.kind == INT4_NAME:
            blocks = blocks.sub_(MIDDLE if self.zeros is None else self.zeros[..., None])
        scales = self.scales
        if self.block[0] > 1:
            scales = scales.repeat_interleave(self.block[0], dim=-2)[..., :rows, :]
        return blocks.mul_(scales[..., None]).view(self.shape).to(dtype)

    def _floats(self) -> torch.Tensor:
        """The values in fp32, without scales. A CPU looks those of eight bits up in a quarter of
        the time of converting them."""
        if self.kind == INT4_NAME:
            return unpack(self.values).float()
        if self.values.device.type != "cpu":
            return self.values.float()
        bits = self.values.view(torch.uint8).reshape(-1).int()
        return _NUMBERS.index_select(0, bits).view(self.values.shape)


def num_blocks(rows: int, block: int) -> int:
    """Blocks that hold so many rows."""
    return -(-rows // block)


def held_weight(module: nn.Module, name: str, weight: Weight) -> Weight:
    """The same weight, its tensors made parameters of ``module``: ``{name}_values``,
    ``{name}_scales``, ``{name}_zeros``."""

    def held(part: str, tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        parameter = nn.Parameter(tensor, requires_grad=False)
        module.register_parameter(f"{name}_{part}", parameter)
        return parameter

    values = held("values", weight.values)
    assert values is not None
    scales, zeros = held("scales", weight.scales), held("zeros", weight.zeros)
    return Weight(values, scales, weight.block, zeros)
