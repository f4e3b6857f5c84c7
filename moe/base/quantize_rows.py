"""Activations made eight bits wide, group of columns by group.

Owns the arithmetic, for kernels that have a row's values at hand, and a kernel for rows that no
such kernel made. A group's scale is its largest magnitude over 448, e4m3's largest number. T rows,
K columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.quantized import Quantized

_BLOCK = 2048  # columns of a program
LARGEST = tl.constexpr(448.0)
LEAST = tl.constexpr(1e-20)  # magnitude that a scale is made for
# Bytes that a store names as the least it may count on. From 16, which is true too, the compiler
# makes threads of 16 numbers each, and a kernel's loads of wider ones at such places no longer lie
# side by side: prefill attention took a quarter longer.
STORED = tl.constexpr(8)


@triton.jit
def quantize_groups(x):
    """x [R, N], each row a group: e4m3 [R, N] and the scales [R]. What is not finite makes NaNs."""
    scales_R = tl.maximum(tl.max(tl.abs(x), axis=1), LEAST) / LARGEST
    return (x * (1.0 / scales_R)[:, None]).to(tl.float8e4nv), scales_R


@triton.jit
def store_quantized(
    x, values_ptr, scales_ptr, row, columns, COLUMNS: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """x at `columns` of a row; whole groups of it, zeros where there is no column."""
    num_groups: tl.constexpr = x.shape[0] // GROUP
    values, scales = quantize_groups(x.to(tl.float32).reshape(num_groups, GROUP))
    values = values.reshape(x.shape[0])
    values_ptrs = tl.multiple_of(values_ptr + row * COLUMNS + columns, STORED)
    tl.store(values_ptrs, values, mask=columns < COLUMNS)
    groups = tl.min(columns, axis=0) // GROUP + tl.arange(0, num_groups)
    scales_ptrs = scales_ptr + row * (COLUMNS // GROUP) + groups
    tl.store(scales_ptrs, scales, mask=groups < COLUMNS // GROUP)


@triton.jit
def _quantize_rows_kernel(
    x_ptr, values_ptr, scales_ptr,
    K: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wait_for_previous(PDL)
    x = tl.load(x_ptr + row * K + columns, mask=columns < K, other=0.0)
    store_quantized(x, values_ptr, scales_ptr, row, columns, K, GROUP)


def quantize_rows(x_TK: torch.Tensor, *, out: Quantized, pdl: bool) -> Quantized:
    """Rows in a launch of their own."""
    T, K = x_TK.shape
    assert out.shape == (T, K) and x_TK.is_contiguous()
    block = max(out.group, min(_BLOCK, triton.next_power_of_2(K)))
    if T:
        _quantize_rows_kernel[(T, triton.cdiv(K, block))](
            x_TK, out.values, out.scales, K=K, GROUP=out.group, BLOCK=block,
            num_warps=max(1, block // 256), **launch_options(pdl),
        )  # fmt: skip
    return out
