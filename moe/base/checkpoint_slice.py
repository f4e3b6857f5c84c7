"""How a module says which part of which checkpoint tensor it wants.

Owns `CheckpointSlice` and the usual ways to make one. Does not know files, formats or ranks: the
loader reads, this only describes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from moe.base.quantize import quantize
from moe.base.weight import Weight

_Each = TypeVar("_Each")

FLOATS = "floats"  # of 16 or 32 bits
FP8_VALUES = "float8_e4m3fn"


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What values must be that say nothing new: they are read, compared and dropped.

    Attributes:
        holds: whether they are so.
        words: what of the tensor is not built, where they are not.
    """

    holds: Callable[[torch.Tensor], bool]
    words: str


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointSlice:
    """One tensor of a checkpoint, and the part of it that fills a view of a parameter.

    `shape` is the tensor's full shape in the file; `index` has one slice a dimension; `target` has
    the shape of the indexed part, or any shape where that is one value, which then fills it. Both
    are None for a tensor that must exist but is another rank's: it is not read. A name may come up
    several times with different parts.

    `dtype` is the type that the file must have: `FLOATS`, or the name of one in torch. `convert`
    makes what the target holds of what the file does, on the target's device. Plain values whose
    target is a `Weight` are quantized into it.
    """

    name: str
    shape: tuple[int, ...]
    index: tuple[slice, ...] | None
    target: torch.Tensor | Weight | Expected | None
    dtype: str = FLOATS
    convert: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        assert (self.index is None) == (self.target is None), self.name
        if self.index is None or self.target is None:
            return
        assert len(self.index) == len(self.shape), self.name
        if self.convert is None and not isinstance(self.target, Expected):
            wanted, held = self._part, tuple(self.target.shape)
            assert wanted in (held, (), (1,)), (self.name, wanted, held)

    @property
    def is_fp8(self) -> bool:
        """Whether the file has 8-bit floats."""
        return self.dtype == FP8_VALUES

    @property
    def num_values(self) -> int:
        """Of the part: those that this rank reads."""
        return 0 if self.index is None else math.prod(self._part)

    def fill(self, values: torch.Tensor) -> None:
        """Write the part's values into the target.

        Raises:
            ValueError: one line naming the tensor, where values are not what is expected.
        """
        if isinstance(self.target, Expected):
            if not self.target.holds(values):
                raise ValueError(f"tensor {self.name} {self.target.words}")
            return
        if self.target is not None and self.convert is not None:
            values = self.convert(values.to(self.target.device))
        if isinstance(self.target, Weight):
            quantize(values, self.target)
        elif self.target is not None:
            self.target.copy_(values)

    @property
    def _part(self) -> tuple[int, ...]:
        assert self.index is not None
        spans = zip(self.index, self.shape, strict=True)
        return tuple(len(range(*span.indices(size))) for span, size in spans)


def whole_units(span: slice, size: int) -> slice:
    """The units of ``size`` values (blocks, words) that make up a span; it must not cut one."""
    assert span.start % size == 0 and span.stop % size == 0, (span, size)
    return slice(span.start // size, span.stop // size)


def whole(name: str, target: torch.Tensor) -> CheckpointSlice:
    """The whole tensor `name` fills `target`."""
    shape = tuple(target.shape)
    return CheckpointSlice(name, shape, tuple(slice(0, size) for size in shape), target)


def part(
    name: str, shape: tuple[int, ...], dim: int, start: int, target: torch.Tensor
) -> CheckpointSlice:
    """`target` is filled from `start` on along `dim` of a tensor of `shape`, all of the others."""
    index = [slice(0, size) for size in shape]
    index[dim] = slice(start, start + target.shape[dim])
    return CheckpointSlice(name, shape, tuple(index), target)


def unread(name: str, shape: tuple[int, ...]) -> CheckpointSlice:
    """A tensor that another rank reads."""
    return CheckpointSlice(name, shape, None, None)


def turned(piece: CheckpointSlice) -> CheckpointSlice:
    """The same of a tensor whose last two dimensions stand the other way round in the file."""
    assert piece.convert is None, piece.name

    def swapped(sizes: tuple[_Each, ...]) -> tuple[_Each, ...]:
        return (*sizes[:-2], sizes[-1], sizes[-2])

    return replace(
        piece,
        shape=swapped(piece.shape),
        index=None if piece.index is None else swapped(piece.index),
        convert=lambda values: values.transpose(-1, -2),
    )
