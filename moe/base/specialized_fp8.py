"""GEMMs of many rows and weights of eight bits by programs whose warps have roles, for Hopper GPUs.

Owns one kernel, in Gluon, and its three launches: both GEMMs of experts, and a dense one. They
compute what `moe.kernels.wide_fp8` and `gemm_fp8` do, where `promoted_dot.specializes`. A program
stays on its multiprocessor and takes tile after tile of 128 rows. One group of its warps loads
inputs and two tiles of weights into a ring of buffers; two groups multiply 64 rows each: while one
scales its sums, the tensor cores work for the other. A step is 128 inputs, under one scale a row.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from moe.base.launch import launch_options, wait_for_previous
from moe.base.promoted_dot import specializes
from moe.base.quantize_rows import LARGEST, LEAST
from moe.base.quantized import Quantized
from moe.base.tile_order import tile_and_columns, together
from moe.base.weight import Weight

SPECIALIZED_ROWS = 128  # of a tile
_ROWS = gl.constexpr(SPECIALIZED_ROWS)
_HALF = gl.constexpr(64)  # of a group of warps
_COLUMNS = gl.constexpr(128)  # of a product; a tile has two
_DEPTH = gl.constexpr(128)  # inputs of a step
_STAGES = gl.constexpr(4)  # steps in the ring: 192 KiB
_THREADS = gl.constexpr(128)  # of a group of warps
_REGISTERS = 224  # of a thread that multiplies
# Newer names first.
_meet = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
_load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_load_rows = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
_BUFFER = gl.constexpr(gl.NVMMASharedLayout(128, 8, rank=2))


@gluon.jit
def _place(tiles, index, GROUPED: gl.constexpr):
    """Of a tile: its expert, -1 where no tile is, and its first row. Of a dense GEMM all are one
    expert's."""
    expert_ptr, start_ptr, offsets_ptr, num_rows = tiles
    if GROUPED:
        expert = gl.load(expert_ptr + index)
        start = gl.load(start_ptr + index)
    else:
        expert = index * 0
        start = index * _ROWS
    return expert, start


@gluon.jit
def _end(tiles, expert, GROUPED: gl.constexpr):
    """The row behind an expert's last."""
    expert_ptr, start_ptr, offsets_ptr, num_rows = tiles
    if GROUPED:
        end = gl.load(offsets_ptr + expert + 1)
    else:
        end = num_rows + expert
    return end


@gluon.jit
def _load(
    x_ptr, w_desc, order_ptr, tiles, num_tiles, ring,
    GROUPED: gl.constexpr, SWIGLU: gl.constexpr, N: gl.constexpr,
    K: gl.constexpr, ROUTES: gl.constexpr, TOGETHER: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """The warps that load: inputs by cp.async, since experts' rows lie anywhere, weights by TMA."""
    inputs, firsts, seconds, full, empty = ring
    layout: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0])
    columns = gl.arange(0, _DEPTH, layout=gl.SliceLayout(0, layout))
    wait_for_previous(PDL)
    # Gate and up lie half a matrix apart, both halves of a tile's columns side by side.
    num_n: gl.constexpr = N // (2 * _COLUMNS)
    width: gl.constexpr = _COLUMNS if SWIGLU else 2 * _COLUMNS
    apart: gl.constexpr = N // 2 if SWIGLU else _COLUMNS
    step = 0
    for t in range(gl.program_id(0), num_tiles * num_n, gl.num_programs(0)):
        tile, n = tile_and_columns(t, num_tiles, num_n, TOGETHER)
        expert, start = _place(tiles, tile, GROUPED)
        if expert >= 0:
            end = _end(tiles, expert, GROUPED)
            # Rows past the end repeat the last one and are never stored.
            rows = start + gl.arange(0, _ROWS, layout=gl.SliceLayout(1, layout))
            rows = gl.minimum(rows, end - 1)
            if SWIGLU:
                rows = gl.load(order_ptr + rows) // ROUTES
            x_ptrs = x_ptr + rows.to(gl.int64)[:, None] * K + columns[None, :]
            row = expert * N + n * width
            for k in range(0, K, _DEPTH):
                stage = step % _STAGES
                mbarrier.wait(empty.index(stage), ((step // _STAGES) & 1) ^ 1)
                mbarrier.expect(full.index(stage), 2 * _COLUMNS * _DEPTH)
                _load_tile(w_desc, [row, k], full.index(stage), firsts.index(stage))
                _load_tile(w_desc, [row + apart, k], full.index(stage), seconds.index(stage))
                _load_rows(inputs.index(stage), x_ptrs + k)
                async_copy.mbarrier_arrive(full.index(stage), increment_count=False)
                step += 1


@gluon.jit
def _scaled(part, x_scales, scale_ptr, BLOCKS: gl.constexpr):
    if BLOCKS:
        x_scales = x_scales * gl.load(scale_ptr)
    return part * x_scales[:, None]


@gluon.jit
def _column_scales(total, scales_ptr, first, BLOCKS: gl.constexpr, layout: gl.constexpr):
    """The sums, times the scales of weights' rows where these have some."""
    if not BLOCKS:
        columns = first + gl.arange(0, _COLUMNS, layout=gl.SliceLayout(0, layout))
        total = total * gl.load(scales_ptr + columns)[None, :]
    return total


@gluon.jit
def _store_swiglu(
    gate, up, out_ptr, out_scales_ptr, start, end, n, I: gl.constexpr, layout: gl.constexpr
):
    """silu(gate) · up in eight bits, a row's columns under one scale."""
    stored: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0])
    inner = gate / (1.0 + gl.exp(-gate)) * up
    scales = gl.maximum(gl.max(gl.abs(inner), axis=1), LEAST) / LARGEST
    inner = (inner * (1.0 / scales)[:, None]).to(gl.float8e4nv)
    rows = start + gl.arange(0, _HALF, layout=gl.SliceLayout(1, layout))
    gl.store(out_scales_ptr + rows * (I // _COLUMNS) + n, scales, mask=rows < end)
    rows = start + gl.arange(0, _HALF, layout=gl.SliceLayout(1, stored))
    columns = n * _COLUMNS + gl.arange(0, _COLUMNS, layout=gl.SliceLayout(0, stored))
    out_ptrs = out_ptr + rows.to(gl.int64)[:, None] * I + columns[None, :]
    gl.store(out_ptrs, gl.convert_layout(inner, stored), mask=(rows < end)[:, None])


@gluon.jit
def _store_columns(
    first, second, out_ptr, order_ptr, start, end, column, N: gl.constexpr, GROUPED: gl.constexpr
):
    """Both halves of a tile's columns, at the routes' own rows where there are any."""
    stored: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    dtype: gl.constexpr = out_ptr.dtype.element_ty
    rows = start + gl.arange(0, _HALF, layout=gl.SliceLayout(1, stored))
    is_row = (rows < end)[:, None]
    if GROUPED:
        rows = gl.load(order_ptr + gl.minimum(rows, end - 1))
    columns = column + gl.arange(0, _COLUMNS, layout=gl.SliceLayout(0, stored))
    out_ptrs = out_ptr + rows.to(gl.int64)[:, None] * N + columns[None, :]
    gl.store(out_ptrs, gl.convert_layout(first.to(dtype), stored), mask=is_row)
    gl.store(out_ptrs + _COLUMNS, gl.convert_layout(second.to(dtype), stored), mask=is_row)


@gluon.jit
def _multiply(
    x_scales_ptr, w_scales_ptr, out_ptr, out_scales_ptr, order_ptr, tiles, num_tiles, ring,
    BLOCKS: gl.constexpr, GROUPED: gl.constexpr, SWIGLU: gl.constexpr, N: gl.constexpr,
    K: gl.constexpr, ROUTES: gl.constexpr, TOGETHER: gl.constexpr, PDL: gl.constexpr,
    WHICH: gl.constexpr,
):  # fmt: skip
    """The warps that multiply the first half of a tile's rows, or the second."""
    inputs, firsts, seconds, full, empty = ring
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    num_n: gl.constexpr = N // (2 * _COLUMNS)
    width: gl.constexpr = _COLUMNS if SWIGLU else 2 * _COLUMNS
    apart: gl.constexpr = N // 2 if SWIGLU else _COLUMNS
    num_steps: gl.constexpr = K // _DEPTH
    nothing = gl.zeros([_HALF, _COLUMNS], gl.float32, layout=layout)
    step = 0
    wait_for_previous(PDL)
    last = num_tiles * num_n - 1
    tile, n = tile_and_columns(gl.program_id(0), num_tiles, num_n, TOGETHER)
    expert, tile_start = _place(tiles, tile, GROUPED)
    end = _end(tiles, expert, GROUPED)
    for t in range(gl.program_id(0), num_tiles * num_n, gl.num_programs(0)):
        # What the next tile needs is asked for a tile ahead.
        coming = gl.minimum(t + gl.num_programs(0), last)
        next_tile, next_n = tile_and_columns(coming, num_tiles, num_n, TOGETHER)
        next_expert, next_start = _place(tiles, next_tile, GROUPED)
        start = tile_start + WHICH * _HALF
        if (expert >= 0) & (start < end):
            row = expert * N + n * width
            rows = gl.minimum(
                start + gl.arange(0, _HALF, layout=gl.SliceLayout(1, layout)), end - 1
            )
            if SWIGLU:
                rows = gl.load(order_ptr + rows) // ROUTES
            x_scales_ptrs = x_scales_ptr + rows * num_steps
            first_scales_ptr = w_scales_ptr + row // _COLUMNS * num_steps
            second_scales_ptr = first_scales_ptr + apart // _COLUMNS * num_steps
            first = gl.zeros([_HALF, _COLUMNS], gl.float32, layout=layout)
            second = gl.zeros([_HALF, _COLUMNS], gl.float32, layout=layout)
            for k in range(num_steps):
                stage = step % _STAGES
                x_scales = gl.load(x_scales_ptrs + k)
                mbarrier.wait(full.index(stage), (step // _STAGES) & 1)
                x = inputs.index(stage).slice(WHICH * _HALF, _HALF)
                part = warpgroup_mma(
                    x, firsts.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True
                )
                part = warpgroup_mma_wait(0, deps=[part])
                first = first + _scaled(part, x_scales, first_scales_ptr + k, BLOCKS)
                part = warpgroup_mma(
                    x, seconds.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True
                )
                part = warpgroup_mma_wait(0, deps=[part])
                _meet()  # all of the group's warps have read the buffers
                mbarrier.arrive(empty.index(stage), count=1)
                second = second + _scaled(part, x_scales, second_scales_ptr + k, BLOCKS)
                step += 1
            next_end = _end(tiles, next_expert, GROUPED)
            first = _column_scales(first, w_scales_ptr, row, BLOCKS, layout)
            second = _column_scales(second, w_scales_ptr, row + apart, BLOCKS, layout)
            if SWIGLU:
                _store_swiglu(first, second, out_ptr, out_scales_ptr, start, end, n, N // 2, layout)
            else:
                _store_columns(first, second, out_ptr, order_ptr, start, end, n * width, N, GROUPED)
        else:
            if expert >= 0:  # the other half has rows, whose buffers go round without this one
                for _ in range(num_steps):
                    stage = step % _STAGES
                    mbarrier.wait(full.index(stage), (step // _STAGES) & 1)
                    mbarrier.arrive(empty.index(stage), count=1)
                    step += 1
            next_end = _end(tiles, next_expert, GROUPED)
        expert = next_expert
        tile_start = next_start
        end = next_end
        n = next_n


def _name(specialization: Any) -> str:
    """What profilers see, by what is computed."""
    constants = specialization.constants
    if constants["SWIGLU"]:
        return "_gate_up_roles_kernel"
    return "_down_roles_kernel" if constants["GROUPED"] else "_linear_roles_kernel"


@gluon.jit(repr=_name, do_not_specialize=["num_rows", "num_tiles"])
def _roles_kernel(
    x_ptr, x_scales_ptr, w_desc, w_scales_ptr, out_ptr, out_scales_ptr, order_ptr, offsets_ptr,
    tile_expert_ptr, tile_start_ptr, num_rows, num_tiles,
    BLOCKS: gl.constexpr, GROUPED: gl.constexpr, SWIGLU: gl.constexpr, N: gl.constexpr,
    K: gl.constexpr, ROUTES: gl.constexpr, TOGETHER: gl.constexpr, REGISTERS: gl.constexpr,
    PDL: gl.constexpr,
):  # fmt: skip
    """A matrix has N outputs and K inputs; BLOCKS of 128 x 128 weights have scales, else rows.
    GROUPED: tiles are experts', and without SWIGLU results go to routes' own rows."""
    inputs = gl.allocate_shared_memory(gl.float8e4nv, [_STAGES, _ROWS, _DEPTH], _BUFFER)
    firsts = gl.allocate_shared_memory(gl.float8e4nv, [_STAGES, _COLUMNS, _DEPTH], _BUFFER)
    seconds = gl.allocate_shared_memory(gl.float8e4nv, [_STAGES, _COLUMNS, _DEPTH], _BUFFER)
    full = gl.allocate_shared_memory(gl.int64, [_STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [_STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(_STAGES):
        mbarrier.init(full.index(stage), count=_THREADS + 1)  # each one's copies, and TMA's bytes
        mbarrier.init(empty.index(stage), count=2)
    _meet()
    tiles = (tile_expert_ptr, tile_start_ptr, offsets_ptr, num_rows)
    ring = (inputs, firsts, seconds, full, empty)
    gl.warp_specialize(
        [
            (_load, (
                x_ptr, w_desc, order_ptr, tiles, num_tiles, ring,
                GROUPED, SWIGLU, N, K, ROUTES, TOGETHER, PDL,
            )),
            (_multiply, (
                x_scales_ptr, w_scales_ptr, out_ptr, out_scales_ptr, order_ptr, tiles, num_tiles,
                ring, BLOCKS, GROUPED, SWIGLU, N, K, ROUTES, TOGETHER, PDL, 0,
            )),
            (_multiply, (
                x_scales_ptr, w_scales_ptr, out_ptr, out_scales_ptr, order_ptr, tiles, num_tiles,
                ring, BLOCKS, GROUPED, SWIGLU, N, K, ROUTES, TOGETHER, PDL, 1,
            )),
        ],
        [4, 4],
        [REGISTERS, REGISTERS],
    )  # fmt: skip


def specialized_gate_up(
    x_TH: Quantized,
    w13: Weight,
    tiles: tuple[torch.Tensor, ...],
    num_routes_per_token: int,
    *,
    out_PI: Quantized,
    pdl: bool,
) -> None:
    """As `moe.kernels.wide_fp8.gate_up_fp8` with tiles of 128 rows and columns; ``tiles`` is an
    `Alignment`."""
    assert out_PI.group == _COLUMNS.value
    out = out_PI.values, out_PI.scales
    _launch(x_TH, w13, tiles, *out, pdl, SWIGLU=True, ROUTES=num_routes_per_token)


def specialized_down(
    inner_PI: Quantized,
    w2: Weight,
    tiles: tuple[torch.Tensor, ...],
    *,
    out_PH: torch.Tensor,
    pdl: bool,
) -> None:
    """As `moe.kernels.wide_fp8.down_fp8` with tiles of 128 rows."""
    _launch(inner_PI, w2, tiles, out_PH, None, pdl, SWIGLU=False, ROUTES=1)


def linear_tiles(num_rows: int, num_outputs: int) -> int:
    """Of a dense GEMM."""
    columns: int = 2 * _COLUMNS.value
    return -(-num_rows // SPECIALIZED_ROWS) * (num_outputs // columns)


def specialized_linear(
    x_MK: Quantized, weight_NK: Weight, *, out_MN: torch.Tensor, pdl: bool
) -> None:
    """As `gemm_fp8.linear_fp8`."""
    _launch(x_MK, weight_NK, None, out_MN, None, pdl, SWIGLU=False, ROUTES=1)


def _launch(
    x: Quantized,
    weight: Weight,
    tiles: tuple[torch.Tensor, ...] | None,
    out: torch.Tensor,
    out_scales: torch.Tensor | None,
    pdl: bool,
    **constants: Any,
) -> None:
    N, K = weight.shape[-2:]
    assert specializes(weight, N, x.group) and x.shape[1] == K
    assert weight.block is not None and weight.values.is_contiguous() and out.is_contiguous()
    order, offsets, tile_expert, tile_start = tiles or (None,) * 4
    num_rows = x.shape[0]
    num_tiles = triton.cdiv(num_rows, SPECIALIZED_ROWS) if tile_expert is None else len(tile_expert)
    matrices = weight.values.view(-1, K)
    descriptor = TensorDescriptor.from_tensor(
        matrices, [_COLUMNS.value, _DEPTH.value], _BUFFER.value
    )
    matrix = N * K // 2 if constants["SWIGLU"] else N * K
    programs = min(_num_cores(matrices.device), num_tiles * (N // (2 * _COLUMNS.value)))
    _roles_kernel[(programs,)](
        x.values, x.scales, descriptor, weight.scales, out, out_scales, order, offsets,
        tile_expert, tile_start, num_rows, num_tiles,
        BLOCKS=weight.block[0] > 1, GROUPED=tile_expert is not None, N=N, K=K,
        TOGETHER=together(matrix), REGISTERS=_REGISTERS, num_warps=4, **constants,
        **launch_options(pdl),
    )  # fmt: skip


@functools.cache
def _num_cores(device: torch.device) -> int:
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count
