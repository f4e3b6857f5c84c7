"""Which tensors of a checkpoint fill a weight of four bits, and what is made of them.

Owns the names, shapes and orders of GPTQ, AWQ and compressed-tensors' `pack-quantized`, all of
which hold eight numbers in an int32, the first in its lowest bits. Does not know files or ranks.
N outputs, K inputs, G groups of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from moe.base.checkpoint_slice import CheckpointSlice, Expected, whole_units
from moe.base.int4_format import Int4Format
from moe.base.int4_pack import pack
from moe.base.weight import Weight

Index = tuple[slice, ...]

_WORD = 8
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word its first, second, … number stands
_ONES = 0x11111111
_MIDDLES = {"gptq": 0x77777777, "gptq_v2": -0x77777778}  # words of zero points that are 8


def int4_slices(
    name: str,
    shape: tuple[int, ...],
    index: Index | None,
    target: Weight | None,
    int4: Int4Format,
) -> Iterator[CheckpointSlice]:
    """All that ``index`` of the weight ``name`` [N, K] takes; another rank's without it and
    ``target``. ``name`` ends in ``weight``, which what it stands for here begins with."""
    assert len(shape) == 2, "experts stand one by one"
    module = name.removesuffix("weight")
    parts = _compressed if int4.stored == "compressed" else _gptq_or_awq
    yield from parts(module, (shape[0], shape[1]), index, target, int4)


def _gptq_or_awq(
    module: str,
    shape: tuple[int, int],
    index: Index | None,
    target: Weight | None,
    int4: Int4Format,
) -> Iterator[CheckpointSlice]:
    """Everything transposed; words hold inputs (GPTQ) or outputs, as those of zero points do."""
    rows, columns = shape
    group = int4.block_of(columns)[1]
    of_rows, of_columns, of_groups = _spans(index, group)
    is_awq = int4.stored == "awq"
    words = (columns, rows // _WORD) if is_awq else (columns // _WORD, rows)
    spans = (of_columns, _words(of_rows)) if is_awq else (_words(of_columns), of_rows)
    yield CheckpointSlice(
        f"{module}qweight", words, _index(index, *spans),
        target and target.values, "int32", _awq_values if is_awq else _gptq_values,
    )  # fmt: skip
    num_groups = columns // group
    yield CheckpointSlice(
        f"{module}scales", (num_groups, rows), _index(index, of_groups, of_rows),
        target and target.scales, int4.scale_type, torch.t,
    )  # fmt: skip
    zeros: torch.Tensor | Expected | None = None
    if target is not None:
        words_of_middles = partial(_all_equal, _MIDDLES.get(int4.stored, 0))
        zeros = target.zeros if int4.zero_points else Expected(words_of_middles, _NOT_SYMMETRIC)
    yield CheckpointSlice(
        f"{module}qzeros", (num_groups, rows // _WORD), _index(index, of_groups, _words(of_rows)),
        zeros, "int32", partial(_transposed_zeros, int4.stored),
    )  # fmt: skip
    if int4.has_group_index:
        in_order = Expected(partial(_is_in_order, of_columns.start, group), _NOT_IN_ORDER)
        yield CheckpointSlice(
            f"{module}g_idx", (columns,), _index(index, of_columns), target and in_order, "int32"
        )  # fmt: skip


def _compressed(
    module: str,
    shape: tuple[int, int],
    index: Index | None,
    target: Weight | None,
    int4: Int4Format,
) -> Iterator[CheckpointSlice]:
    """As the matrix stands; words hold inputs, those of zero points outputs."""
    rows, columns = shape
    group = int4.block_of(columns)[1]
    of_rows, of_columns, of_groups = _spans(index, group)
    num_groups = columns // group
    yield CheckpointSlice(
        f"{module}weight_packed", (rows, columns // _WORD),
        _index(index, of_rows, _words(of_columns)),
        target and target.values, "int32", _compressed_values,
    )  # fmt: skip
    yield CheckpointSlice(
        f"{module}weight_scale", (rows, num_groups), _index(index, of_rows, of_groups),
        target and target.scales, int4.scale_type,
    )  # fmt: skip
    if int4.zero_points:
        yield CheckpointSlice(
            f"{module}weight_zero_point", (rows // _WORD, num_groups),
            _index(index, _words(of_rows), of_groups),
            target and target.zeros, "int32", _compressed_zeros,
        )  # fmt: skip
    same = Expected(lambda values: values.tolist() == [rows, columns], f"is not {[rows, columns]}")
    yield CheckpointSlice(
        f"{module}weight_shape", (2,), _index(index, slice(0, 2)), target and same, "int64"
    )


_NOT_SYMMETRIC = (
    "has zero points other than 8, but config.json says sym true: serve another checkpoint"
)
_NOT_IN_ORDER = (
    "says that groups are not of inputs in order, which is not built: serve a checkpoint that was "
    "quantized with desc_act false"
)


def _spans(index: Index | None, group: int) -> tuple[slice, slice, slice]:
    """Rows, columns and groups of columns of a part; for another rank's, whatever."""
    if index is None:
        return slice(0, 0), slice(0, 0), slice(0, 0)
    of_rows, of_columns = index
    return of_rows, of_columns, whole_units(of_columns, group)


def _words(span: slice) -> slice:
    return whole_units(span, _WORD)


def _index(index: Index | None, *spans: slice) -> Index | None:
    return None if index is None else spans


def _numbers(words: torch.Tensor) -> torch.Tensor:
    """The eight numbers of each word, uint8 [..., 8]."""
    eights = words.contiguous().view(torch.uint8).unflatten(-1, (-1, _WORD // 2))
    return torch.stack((eights & 15, eights >> 4), dim=-1).flatten(-2)


def _gptq_values(words: torch.Tensor) -> torch.Tensor:
    """[K / 8, N] → [N, K / 2]."""
    return pack(_numbers(words).permute(1, 0, 2).flatten(1))


def _awq_values(words: torch.Tensor) -> torch.Tensor:
    """[K, N / 8] → [N, K / 2]."""
    return pack(_numbers(words)[..., _AWQ_ORDER].flatten(1).t())


def _compressed_values(words: torch.Tensor) -> torch.Tensor:
    """[N, K / 8] → [N, K / 2]. Numbers from −8 to 7 stand 8 higher, as their zero points do."""
    return pack(_numbers(words).flatten(1))


def _transposed_zeros(stored: str, words: torch.Tensor) -> torch.Tensor:
    """[G, N / 8] → [N, G]."""
    if stored == "gptq":  # its words were made less by one in each number
        words = words + _ONES
    numbers = _numbers(words)
    if stored == "awq":
        numbers = numbers[..., _AWQ_ORDER]
    return numbers.flatten(1).t()


def _compressed_zeros(words: torch.Tensor) -> torch.Tensor:
    """[N / 8, G] → [N, G]."""
    return _numbers(words).permute(0, 2, 1).flatten(0, 1)


def _all_equal(word: int, words: torch.Tensor) -> bool:
    return bool((words == word).all())


def _is_in_order(start: int, group: int, index: torch.Tensor) -> bool:
    """Whether inputs from ``start`` on are of groups as they come."""
    inputs = torch.arange(start, start + len(index), device=index.device)
    return torch.equal(index.long(), inputs // group)
