"""Which tensors of a checkpoint fill a weight: its values, and its scales where it has them.

Owns the names and shapes of scales of 8-bit values, and which of them belong to a part of the
values; what stands for 4-bit ones says `int4_slices`. Does not know files or ranks. N outputs, K
inputs, "…" experts or nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

from moe.base.checkpoint_slice import FLOATS, FP8_VALUES, CheckpointSlice, whole_units
from moe.base.fp8_format import Fp8Format
from moe.base.int4_format import Int4Format
from moe.base.int4_slices import int4_slices
from moe.base.weight import Weight, num_blocks
from moe.base.weight_format import WeightFormat

Index = tuple[slice, ...]


def weight_part(
    name: str,
    shape: tuple[int, ...],
    dim: int,
    start: int,
    target: Weight,
    weight_format: WeightFormat | None,
) -> Iterator[CheckpointSlice]:
    """``target`` is filled from ``start`` on along ``dim`` of the tensor ``name`` of ``shape``, all
    of the others, and its scales from what belongs to that."""
    index = [slice(0, size) for size in shape]
    index[dim] = slice(start, start + target.shape[dim])
    yield from weight_slices(name, shape, tuple(index), target, weight_format)


def weight_slices(
    name: str,
    shape: tuple[int, ...],
    index: Index | None,
    target: Weight | None,
    weight_format: WeightFormat | None,
) -> Iterator[CheckpointSlice]:
    """All that ``index`` of the weight ``name`` takes; another rank's without it and ``target``."""
    if isinstance(weight_format, Int4Format) and weight_format.stored != "plain":
        yield from int4_slices(name, shape, index, target, weight_format)
        return
    yield values_slice(name, shape, index, target, weight_format)
    if has_scales(weight_format):
        yield scales_slice(name, shape, index, target, weight_format)


def has_scales(weight_format: WeightFormat | None) -> TypeGuard[Fp8Format]:
    """Whether a checkpoint holds 8-bit values and scales of them."""
    return isinstance(weight_format, Fp8Format) and weight_format.stored != "plain"


def values_slice(
    name: str,
    shape: tuple[int, ...],
    index: Index | None,
    target: Weight | None,
    weight_format: WeightFormat | None,
) -> CheckpointSlice:
    """The values alone, another rank's without ``index`` and ``target``; plain ones for a target
    of fewer bits are quantized as they are read."""
    if weight_format is not None and weight_format.stored == "plain":
        return CheckpointSlice(name, shape, index, target)
    values = None if target is None else target.values
    dtype = FLOATS if weight_format is None else FP8_VALUES
    return CheckpointSlice(name, shape, index, values, dtype)


def scales_slice(
    name: str,
    shape: tuple[int, ...],
    index: Index | None,
    target: Weight | None,
    fp8: Fp8Format,
) -> CheckpointSlice:
    """The scales alone, of the values' part that ``index`` names."""
    scales = None if target is None else target.scales
    name = f"{name}{fp8.suffix}"
    if fp8.stored != "blocks":
        one = () if fp8.stored == "scalar" else (1,)
        whole = None if index is None else tuple(slice(0, size) for size in one)
        return CheckpointSlice(name, one, whole, scales)
    *leading, rows, columns = shape
    block = fp8.block_of(columns)
    shape = (*leading, num_blocks(rows, block[0]), columns // block[1])
    if index is None:
        return CheckpointSlice(name, shape, None, None)
    of_columns = slice(0, 1) if fp8.block is None else whole_units(index[-1], block[1])
    first, last = index[-2].start, index[-2].stop
    assert last % block[0] == 0 or last == rows, (name, index, block)
    of_rows = slice(first, num_blocks(last, block[0]) * block[0])
    return CheckpointSlice(
        name, shape, (*index[:-2], whole_units(of_rows, block[0]), of_columns), scales
    )
