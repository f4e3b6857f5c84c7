"""Weights of four bits in a matrix-vector product: a stream of bytes without tensor cores.

Owns device functions. 16 bytes are a unit, 32 inputs of one row (`int4_pack`) under one scale, and
what a thread loads at once: units are summed and scaled before anything is added between threads.
GROUP and ZEROS are those of `int4_dot`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moe.base.int4_format import UNIT

_UNIT = tl.constexpr(UNIT)
_HALF = tl.constexpr(UNIT // 2)


def _text(shift: str) -> tl.constexpr:
    """PTX that makes four fp32 numbers of four bytes: one half of each, behind a shift."""
    return tl.constexpr(
        f"""{{
            .reg .b32 bits;
            {shift}
            lop3.b32 bits, bits, 0x78787878, 0x80808080, 0xea;
            prmt.b32 $0, bits, 0x3f, 0x4055;
            prmt.b32 $1, bits, 0x3f, 0x4155;
            prmt.b32 $2, bits, 0x3f, 0x4255;
            prmt.b32 $3, bits, 0x3f, 0x4355;
            }}"""
    )


_LOW_TEXT, _HIGH_TEXT = _text("shl.b32 bits, $4, 3;"), _text("shr.u32 bits, $4, 1;")


@triton.jit
def unit_starts(INPUTS: tl.constexpr):
    """The first input of each unit [units]."""
    return tl.arange(0, INPUTS // _UNIT) * _UNIT


@triton.jit
def zero_sums(ROWS: tl.constexpr, INPUTS: tl.constexpr):
    """Of what `unit_sums` gives."""
    return tl.zeros((ROWS, INPUTS // _UNIT), dtype=tl.float32)


@triton.jit
def unit_inputs(x_K):
    """fp32 inputs of the low halves and of the high ones [bytes], of whole units of inputs."""
    UNITS: tl.constexpr = x_K.shape[0] // _UNIT
    halves = x_K.to(tl.float32).reshape(UNITS, 2, _HALF).permute(0, 2, 1)
    x_low, x_high = halves.split()
    return x_low.reshape(UNITS * _HALF), x_high.reshape(UNITS * _HALF)


@triton.jit
def _floats(packed, HIGH: tl.constexpr, ASM: tl.constexpr):
    """16 + number, over 16, of the high halves or of the low ones: four bits behind the exponent
    of 1."""
    if ASM:
        text: tl.constexpr = _HIGH_TEXT if HIGH else _LOW_TEXT
        floats = tl.inline_asm_elementwise(
            text, "=r,=r,=r,=r,r", [packed], dtype=tl.float32, is_pure=True, pack=4
        )
    else:
        number = packed >> 4 if HIGH else packed & 15
        floats = 1.0 + number.to(tl.float32) / 16
    return floats


@triton.jit
def load_groups(
    scales_ptr, zeros_ptr, matrix, rows_N, is_row_N, starts_U,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """Of the group of each unit that begins so [rows, units]: its scale, and what its zero point is
    above 8, over 16."""
    size: tl.constexpr = GROUP if GROUP > 0 else K
    places = (matrix * (K // size) + starts_U[None, :] // size) * N + rows_N[:, None]
    is_there = is_row_N[:, None] & (starts_U < K)[None, :]
    scales = tl.load(scales_ptr + places, mask=is_there, other=0.0).to(tl.float32)
    zeros = 0.0
    if ZEROS:
        zeros = (tl.load(zeros_ptr + places, mask=is_there, other=8).to(tl.float32) - 8.0) / 16
    return scales, zeros


@triton.jit
def unit_sums(packed, x_low, x_high, scales, zeros, ZEROS: tl.constexpr, ASM: tl.constexpr):
    """Σ (number − zero) · x · scale of each unit [rows, units].

    Args:
        packed: bytes [rows, 16 · units].
        x_low, x_high: as of `unit_inputs`.
        scales, zeros: as of `load_groups`.
    """
    UNITS: tl.constexpr = packed.shape[1] // _HALF
    low, high = _floats(packed, False, ASM), _floats(packed, True, ASM)
    x_both = x_low + x_high
    # 16 that floats are too large, and 8 that all numbers count from, are part of a product's sum.
    each = low * x_low[None, :] + (high * x_high[None, :] + (-1.5 * x_both)[None, :])
    sums = tl.sum(each.reshape(packed.shape[0], UNITS, _HALF), axis=2)
    if ZEROS:
        sums -= zeros * tl.sum(x_both.reshape(UNITS, _HALF), axis=1)[None, :]
    return sums * (16.0 * scales)
