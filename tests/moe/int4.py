"""Matrices of 4-bit numbers, and packers of the forms in which checkpoints have them, by the forms'
definitions, number by number."""

from __future__ import annotations

from typing import NamedTuple

import torch

from moe.base.int4_format import Int4Format
from moe.base.int4_pack import pack, unpack
from moe.base.quantize import empty_weight
from moe.base.weight import Weight

Tensors = dict[str, torch.Tensor]

IN_ORDER = tuple(range(8))
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the columns of a word, from its lowest bits on


class Numbers(NamedTuple):
    """A matrix of 4-bit numbers [N, K], the scales of its groups and their zero points [N, G]."""

    values: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    @property
    def group(self) -> int:
        return self.values.shape[1] // self.scales.shape[1]

    def exact(self) -> torch.Tensor:
        """The matrix in fp32."""
        zeros = self.zeros.repeat_interleave(self.group, 1)
        scales = self.scales.float().repeat_interleave(self.group, 1)
        return (self.values - zeros).float() * scales


def nearest(
    plain: torch.Tensor, group: int | None, *, symmetric: bool, scale_type: torch.dtype
) -> Numbers:
    """The nearest numbers in groups of so many inputs, or of a whole row."""
    groups = plain.float().unflatten(1, (-1, group or plain.shape[1]))
    if symmetric:
        scales = (groups.abs().amax(2) / 7.5).to(scale_type)
        zeros = torch.full(scales.shape, 8)
    else:
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        scales = ((high - low) / 15).to(scale_type)
        zeros = (-low / scales.float()).round().clamp(0, 15).long()
    values = (groups / scales.float()[..., None]).round().long() + zeros[..., None]
    return Numbers(values.clamp(0, 15).flatten(1), scales, zeros)


def packed(numbers: torch.Tensor, order: tuple[int, ...] = IN_ORDER) -> torch.Tensor:
    """int32 [..., n / 8] of numbers [..., n]; ``order``: of a word's, from its lowest bits on."""
    eights = numbers.unflatten(-1, (-1, 8))
    words = sum(eights[..., number] << 4 * place for place, number in enumerate(order))
    assert isinstance(words, torch.Tensor)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int().contiguous()


def gptq(numbers: Numbers, *, version: int = 1, group_index: bool = True) -> Tensors:
    """Of a module, as GPTQModel packs it; version 1 stores zero points less by one."""
    zeros = packed(numbers.zeros.t())
    if version == 1:
        zeros = zeros - 0x11111111
    index = torch.arange(numbers.values.shape[1]).int() // numbers.group
    return {
        "qweight": packed(numbers.values).t().contiguous(),
        "scales": numbers.scales.t().contiguous(),
        "qzeros": zeros,
        **({"g_idx": index} if group_index else {}),
    }


def awq(numbers: Numbers) -> Tensors:
    """Of a module, as AutoAWQ's `WQLinear_GEMM` packs it."""
    return {
        "qweight": packed(numbers.values.t(), AWQ_ORDER),
        "scales": numbers.scales.t().contiguous(),
        "qzeros": packed(numbers.zeros.t(), AWQ_ORDER),
    }


def compressed(numbers: Numbers, *, symmetric: bool = True) -> Tensors:
    """Of a module, as compressed-tensors' `PackedQuantizationCompressor` packs it."""
    zeros = packed(numbers.zeros.t()).t().contiguous()
    return {
        "weight_packed": packed(numbers.values),
        "weight_scale": numbers.scales,
        "weight_shape": torch.tensor(numbers.values.shape),
        **({} if symmetric else {"weight_zero_point": zeros}),
    }


def make_int4(
    shape: tuple[int, ...],
    int4: Int4Format,
    *,
    size: float,
    device: torch.device | str = "cpu",
) -> Weight:
    """Random numbers, scales and zero points, the matrix itself of about ``size``."""
    weight = empty_weight(shape, int4, dtype=torch.float32, device=device)
    assert weight.scales is not None
    weight.values.copy_(pack(torch.randint(16, shape, dtype=torch.uint8, device=device)))
    spread = torch.rand(weight.scales.shape, device=device) + 0.5
    weight.scales.copy_(spread * (size / (6.5 if weight.zeros is not None else 4.6)))
    if weight.zeros is not None:
        weight.zeros.copy_(torch.randint(16, weight.zeros.shape, device=device))
    return weight


def exact_int4(weight: Weight) -> torch.Tensor:
    """The matrix in fp64."""
    assert weight.scales is not None
    assert weight.block is not None
    group = weight.block[1]
    zeros = torch.full_like(weight.scales, 8) if weight.zeros is None else weight.zeros
    numbers = unpack(weight.values).double() - zeros.double().repeat_interleave(group, -1)
    return numbers * weight.scales.double().repeat_interleave(group, -1)
