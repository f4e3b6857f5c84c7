"""Weights of four bits in a GEMM: made wider in registers, and scales and zero points put on sums.

Owns device functions, and what a launch says of groups. A byte holds two numbers that are 16 inputs
apart (`int4_pack`), so a step multiplies two tiles of numbers with two of inputs. Numbers count
from 8, and what a zero point differs from that is taken from the sum of a group's inputs. GROUP
inputs have one scale and zero point; 0: all of a row have one scale and no zero point. Scales and
zero points lie by groups, so that those of neighbouring rows are neighbours. M rows of inputs, N
rows and K inputs of a matrix.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from moe.base.add_dot import add_dot
from moe.base.int4_format import UNIT
from moe.base.tiles import Tiles
from moe.base.weight import Weight

_UNIT = tl.constexpr(UNIT)
_HALF = tl.constexpr(UNIT // 2)


def _text(shift: str) -> tl.constexpr:
    """PTX that makes two bf16 numbers of two bytes, of their low halves behind a shift."""
    return tl.constexpr(
        f"""{{
            .reg .b32 pair, middle;
            mov.b32 middle, 0x43084308;
            prmt.b32 pair, $1, 0, 0x4140;
            {shift}
            lop3.b32 pair, pair, 0x000f000f, 0x43004300, 0xea;
            sub.rn.bf16x2 $0, pair, middle;
            }}"""
    )


_LOW_TEXT, _HIGH_TEXT = _text(""), _text("shr.u32 pair, pair, 4;")


@triton.jit
def first_inputs(BYTES: tl.constexpr):
    """Where the inputs of the low halves of so many bytes stand in a row; of the high ones, 16
    behind."""
    bytes_B = tl.arange(0, BYTES)
    return bytes_B // _HALF * _UNIT + bytes_B % _HALF


@triton.jit
def _numbers(packed, HIGH: tl.constexpr, dtype: tl.constexpr, ASM: tl.constexpr):
    """Those of the high halves or of the low ones, less 8.

    In bf16 the four last bits behind the exponent of 128 are added to it: nothing is converted, and
    two numbers of low halves cost three instructions.
    """
    if ASM and dtype == tl.bfloat16:
        text: tl.constexpr = _HIGH_TEXT if HIGH else _LOW_TEXT
        numbers = tl.inline_asm_elementwise(
            text, "=r,r", [packed], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        number = packed >> 4 if HIGH else packed & 15
        numbers = (number.to(tl.int32) - 8).to(dtype)
    return numbers


@triton.jit
def add_int4_dot(
    total, x_low, x_high, packed, PRECISION: tl.constexpr, SWAP: tl.constexpr, ASM: tl.constexpr
):  # fmt: skip
    """total + x·wᵀ without scales; with SWAP both `total` and the result are transposed."""
    total = add_dot(total, x_low, _numbers(packed, False, x_low.dtype, ASM), PRECISION, SWAP)
    return add_dot(total, x_high, _numbers(packed, True, x_high.dtype, ASM), PRECISION, SWAP)


@triton.jit
def input_sums(x_low, x_high, ZEROS: tl.constexpr):
    """Of each row of inputs [M], where zero points take from them."""
    sums_M = tl.zeros((x_low.shape[0],), dtype=tl.float32)
    if ZEROS:
        sums_M = tl.sum(x_low.to(tl.float32) + x_high.to(tl.float32), axis=1)
    return sums_M


@triton.jit
def load_zeros(zeros_ptr, places_N, is_row_N, ZEROS: tl.constexpr):
    """Zero points of rows, less 8 [N]."""
    zeros_N = tl.zeros((places_N.shape[0],), dtype=tl.float32)
    if ZEROS:
        zeros_N = tl.load(zeros_ptr + places_N, mask=is_row_N, other=8).to(tl.float32) - 8.0
    return zeros_N


@triton.jit
def scale_sums(part, sums_M, scales_N, zeros_N, ZEROS: tl.constexpr, SWAP: tl.constexpr):
    """Sums of numbers · inputs less zero points, times scales: [M, N], with SWAP [N, M]."""
    scales_N = scales_N.to(tl.float32)
    if SWAP:
        if ZEROS:
            part -= zeros_N[:, None] * sums_M[None, :]
        part = part * scales_N[:, None]
    else:
        if ZEROS:
            part -= sums_M[:, None] * zeros_N[None, :]
        part = part * scales_N[None, :]
    return part


def int4_options(weight: Weight) -> dict[str, Any]:
    """GROUP, ZEROS and ASM of a launch over this weight."""
    assert weight.scales is not None and weight.block is not None
    assert weight.values.is_contiguous() and weight.scales.mT.is_contiguous()
    assert weight.zeros is None or weight.zeros.mT.is_contiguous()
    group = weight.block[1]
    assert group % UNIT == 0 and (group == weight.shape[-1] or group & (group - 1) == 0)
    return {
        # With zero points a row counts as one group: where inputs are summed over many steps while
        # tensor cores read the same memory, Triton 3.6 gives sums of other inputs.
        "GROUP": 0 if group == weight.shape[-1] and weight.zeros is None else group,
        "ZEROS": weight.zeros is not None,
        "ASM": weight.values.is_cuda,
    }


def within_groups(tiles: Tiles, weight: Weight) -> Tiles:
    """The tiles, their depth within one group and of whole bytes."""
    assert weight.block is not None
    depth = max(tiles.block_k, UNIT)
    if weight.block[1] < weight.shape[-1] and tiles.block_m > 1:
        depth = min(depth, weight.block[1])
    return dataclasses.replace(tiles, block_k=depth)
