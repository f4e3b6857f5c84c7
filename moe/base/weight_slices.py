"""Which tensors of a checkpoint fill a weight: its values, and its scales where it has them.

Owns the names and shapes of scales, and which of them belong to a part of the values. Does not
know files or ranks. N outputs, K inputs, "…" experts or nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from moe.base.checkpoint_slice import CheckpointSlice
from moe.base.fp8_format import Fp8Format
from moe.base.weight import Weight

Index = tuple[slice, ...]


def weight_part(
    name: str, shape: tuple[int, ...], dim: int, start: int, target: Weight, fp8: Fp8Format | None
) -> Iterator[CheckpointSlice]:
    """``target`` is filled from ``start`` on along ``dim`` of the tensor ``name`` of ``shape``, all
    of the others, and its scales from what belongs to that."""
    index = [slice(0, size) for size in shape]
    index[dim] = slice(start, start + target.shape[dim])
    yield values_slice(name, shape, tuple(index), target, fp8)
    if fp8 is not None and fp8.stored != "plain":
        yield scales_slice(name, shape, tuple(index), target, fp8)


def values_slice(
    name: str,
    shape: tuple[int, ...],
    index: Index | None,
    target: Weight | None,
    fp8: Fp8Format | None,
) -> CheckpointSlice:
    """The values alone, another rank's without ``index`` and ``target``; plain ones for an 8-bit
    target are quantized as they are read."""
    if fp8 is not None and fp8.stored == "plain":
        return CheckpointSlice(name, shape, index, target)
    values = None if target is None else target.values
    return CheckpointSlice(name, shape, index, values, is_fp8=fp8 is not None)


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
    num_blocks = (*leading, rows // block[0], columns // block[1])
    if index is None:
        return CheckpointSlice(name, num_blocks, None, None)
    of_columns = slice(0, 1) if fp8.block is None else _blocks_of(index[-1], block[1])
    return CheckpointSlice(
        name, num_blocks, (*index[:-2], _blocks_of(index[-2], block[0]), of_columns), scales
    )


def _blocks_of(span: slice, size: int) -> slice:
    """The blocks that make up a span of values; it must not cut one."""
    assert span.start % size == 0 and span.stop % size == 0, (span, size)
    return slice(span.start // size, span.stop // size)
