"""Making weights of fewer bits: memory for them, and their values from plain ones.

Owns the arithmetic: a block's scale is its largest magnitude over the largest number of its type,
448 of e4m3, 7 of four bits. Knows no file. N outputs, K inputs, "…" experts or nothing.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from moe.base.int4_format import MIDDLE, Int4Format
from moe.base.int4_pack import pack
from moe.base.tiles import INT4_NAME
from moe.base.weight import Weight, num_blocks
from moe.base.weight_format import WeightFormat

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max


def empty_weight(
    shape: tuple[int, ...],
    weight_format: WeightFormat | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Weight:
    """Memory for a weight [..., N, K]: plain, in ``dtype``, where ``weight_format`` is None.

    Sides must be whole blocks, which `workers.scale_blocks` checks, but for a matrix's rows.
    """
    if weight_format is None:
        return Weight(torch.empty(shape, dtype=dtype, device=device))
    *leading, rows, columns = shape
    block = weight_format.block_of(columns)
    assert columns % block[1] == 0, (shape, block)
    by_blocks = (*leading, num_blocks(rows, block[0]), columns // block[1])
    if isinstance(weight_format, Int4Format):
        scale_type: torch.dtype = getattr(torch, weight_format.scale_type)
        bytes_of = partial(torch.empty, dtype=torch.uint8, device=device)
        # Those of neighbouring rows lie together: a kernel's tile has more rows than groups.
        by_groups = *leading, by_blocks[-1], rows
        return Weight(
            bytes_of((*leading, rows, columns // 2)),
            torch.empty(by_groups, dtype=scale_type, device=device).mT,
            block,
            bytes_of(by_groups).mT if weight_format.zero_points else None,
        )
    return Weight(
        torch.empty(shape, dtype=FP8, device=device),
        torch.empty(by_blocks, dtype=torch.float32, device=device),
        block,
    )


def quantize(plain: torch.Tensor, target: Weight) -> None:
    """Fill ``target`` with the nearest of what it can hold; a block of zeros has the scale 1.

    One expert after the other, in fp32 on the target's device. All zero points are `MIDDLE`.
    """
    assert target.scales is not None and target.block is not None
    assert plain.shape == target.shape, (plain.shape, target.shape)
    if plain.ndim > 2:
        for expert in range(len(plain)):
            quantize(plain[expert], target[expert])
        return
    is_int4 = target.kind == INT4_NAME
    rows, columns = target.scales.shape
    blocks = plain.to(target.device).float()
    missing = rows * target.block[0] - len(plain)
    if missing:
        blocks = F.pad(blocks, (0, 0, 0, missing))
    blocks = blocks.reshape(rows, target.block[0], columns, target.block[1])
    scales = blocks.abs().amax(dim=(1, 3)) / (MIDDLE - 1 if is_int4 else _LARGEST)
    target.scales.copy_(scales.masked_fill(scales == 0, 1.0))
    if is_int4:  # by the scale as it is kept
        scales = target.scales.float().clamp_min_(torch.finfo(target.scales.dtype).tiny)
        numbers = (blocks / scales[:, None, :, None]).round_().clamp_(-MIDDLE, MIDDLE - 1)
        target.values.copy_(pack(numbers.add_(MIDDLE).byte().view(plain.shape)))
        if target.zeros is not None:
            target.zeros.fill_(MIDDLE)
        return
    scaled = blocks / target.scales[:, None, :, None]
    scaled = scaled.clamp_(-_LARGEST, _LARGEST).view(-1, plain.shape[1])
    target.values.copy_(scaled[: len(plain)])
