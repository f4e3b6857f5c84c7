"""Making weights of 8-bit floats: memory for them, and their values from plain ones.

Owns the arithmetic: a block's scale is its largest magnitude over 448, e4m3's largest number.
Knows no file. N outputs, K inputs, "…" experts or nothing.
"""

from __future__ import annotations

import torch

from moe.base.fp8_format import Fp8Format
from moe.base.weight import Weight

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max


def empty_weight(
    shape: tuple[int, ...],
    fp8: Fp8Format | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Weight:
    """Memory for a weight [..., N, K]: plain, in ``dtype``, where ``fp8`` is None.

    Sides must be whole blocks, which `workers.scale_blocks` checks.
    """
    if fp8 is None:
        return Weight(torch.empty(shape, dtype=dtype, device=device))
    *leading, rows, columns = shape
    block = fp8.block_of(columns)
    assert rows % block[0] == 0 and columns % block[1] == 0, (shape, block)
    num_blocks = (*leading, rows // block[0], columns // block[1])
    return Weight(
        torch.empty(shape, dtype=FP8, device=device),
        torch.empty(num_blocks, dtype=torch.float32, device=device),
        block,
    )


def quantize(plain: torch.Tensor, target: Weight) -> None:
    """Fill ``target`` with the nearest of what it can hold; a block of zeros has the scale 1.

    One expert after the other, in fp32 on the target's device.
    """
    assert target.scales is not None and target.block is not None
    assert plain.shape == target.shape, (plain.shape, target.shape)
    if plain.ndim > 2:
        for expert in range(len(plain)):
            quantize(plain[expert], target[expert])
        return
    rows, columns = target.scales.shape
    blocks = plain.to(target.device).float()
    blocks = blocks.reshape(rows, target.block[0], columns, target.block[1])
    scales = blocks.abs().amax(dim=(1, 3)) / _LARGEST
    scales = scales.masked_fill(scales == 0, 1.0)
    scaled = blocks / scales[:, None, :, None]
    target.scales.copy_(scales)
    target.values.copy_(scaled.clamp_(-_LARGEST, _LARGEST).view(plain.shape))
