"""Expert GEMMs of a few tokens over weights of four bits: as `vector`, which knows when.

Owns two matrix-vector kernels; a program takes one route and some rows of its expert's matrix.
T tokens, K experts per token, P = T·K routes, E local experts, H hidden, I expert width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.int4_dot import int4_options, within_groups
from moe.base.int4_products import load_groups, unit_inputs, unit_starts, unit_sums, zero_sums
from moe.base.launch import launch_options, wait_for_previous
from moe.base.silu import silu
from moe.base.tiles import Tiles
from moe.base.weight import Weight
from moe.kernels.locate import local_expert


@triton.jit
def _gate_up_kernel(
    x_ptr, w13_ptr, scales_ptr, zeros_ptr, inner_ptr, ids_ptr, map_ptr,
    K: tl.constexpr, H: tl.constexpr, I: tl.constexpr, HAS_MAP: tl.constexpr,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, ASM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    num_n: tl.constexpr = (I + BLOCK_N - 1) // BLOCK_N
    route, n = tl.program_id(0) // num_n, tl.program_id(0) % num_n
    wait_for_previous(PDL)
    expert = local_expert(ids_ptr, map_ptr, route, HAS_MAP)
    if expert < 0:
        return
    columns_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column_N = columns_N < I
    ks, bytes_B, units_U = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2), unit_starts(BLOCK_K)
    gate_ptrs = w13_ptr + expert.to(tl.int64) * (I * H) + columns_N[:, None] * (H // 2) + bytes_B
    x_ptrs = x_ptr + (route // K) * H + ks
    gate, up = zero_sums(BLOCK_N, BLOCK_K), zero_sums(BLOCK_N, BLOCK_K)
    even: tl.constexpr = H % BLOCK_K == 0 and I % BLOCK_N == 0
    for k in tl.static_range(0, H, BLOCK_K):
        # Weights first, inputs last: these go from thread to thread before they are used.
        if even:
            w_gate = tl.load(gate_ptrs + k // 2, eviction_policy="evict_first")
            w_up = tl.load(gate_ptrs + I * H // 2 + k // 2, eviction_policy="evict_first")
        else:
            is_w = is_column_N[:, None] & (k // 2 + bytes_B < H // 2)[None, :]
            w_gate = tl.load(gate_ptrs + k // 2, mask=is_w, other=0)
            w_up = tl.load(gate_ptrs + I * H // 2 + k // 2, mask=is_w, other=0)
        gate_scales, gate_zeros = load_groups(
            scales_ptr,
            zeros_ptr,
            expert,
            columns_N,
            is_column_N,
            k + units_U,
            2 * I,
            H,
            GROUP,
            ZEROS,
        )
        up_scales, up_zeros = load_groups(
            scales_ptr,
            zeros_ptr,
            expert,
            columns_N + I,
            is_column_N,
            k + units_U,
            2 * I,
            H,
            GROUP,
            ZEROS,
        )
        x_low, x_high = unit_inputs(tl.load(x_ptrs + k, mask=k + ks < H, other=0.0))
        gate += unit_sums(w_gate, x_low, x_high, gate_scales, gate_zeros, ZEROS, ASM)
        up += unit_sums(w_up, x_low, x_high, up_scales, up_zeros, ZEROS, ASM)
    gate_N, up_N = tl.sum(gate, axis=1), tl.sum(up, axis=1)
    inner_N = silu(gate_N) * up_N
    tl.store(
        inner_ptr + route * I + columns_N,
        inner_N.to(inner_ptr.dtype.element_ty),
        mask=is_column_N,
    )


@triton.jit
def _down_kernel(
    inner_ptr, w2_ptr, scales_ptr, zeros_ptr, out_ptr, ids_ptr, map_ptr,
    H: tl.constexpr, I: tl.constexpr, HAS_MAP: tl.constexpr,
    GROUP: tl.constexpr, ZEROS: tl.constexpr, ASM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    num_n: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    route, n = tl.program_id(0) // num_n, tl.program_id(0) % num_n
    columns_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column_N = columns_N < H
    # The routes are older than the kernel before, gate·up, which has waited for them itself.
    expert = local_expert(ids_ptr, map_ptr, route, HAS_MAP)
    if expert < 0:
        if PDL:
            tl.extra.cuda.gdc_wait()
        return
    ks, bytes_B, units_U = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2), unit_starts(BLOCK_K)
    w_ptrs = w2_ptr + expert.to(tl.int64) * (H * I // 2) + columns_N[:, None] * (I // 2) + bytes_B
    x_ptrs = inner_ptr + route * I + ks
    wait_for_previous(PDL)
    total = zero_sums(BLOCK_N, BLOCK_K)
    even: tl.constexpr = I % BLOCK_K == 0 and H % BLOCK_N == 0
    for k in tl.static_range(0, I, BLOCK_K):
        if even:
            w = tl.load(w_ptrs + k // 2, eviction_policy="evict_first")
        else:
            is_w = is_column_N[:, None] & (k // 2 + bytes_B < I // 2)[None, :]
            w = tl.load(w_ptrs + k // 2, mask=is_w, other=0)
        scales, zeros = load_groups(
            scales_ptr, zeros_ptr, expert, columns_N, is_column_N, k + units_U, H, I, GROUP, ZEROS
        )
        x_low, x_high = unit_inputs(tl.load(x_ptrs + k, mask=k + ks < I, other=0.0))
        total += unit_sums(w, x_low, x_high, scales, zeros, ZEROS, ASM)
    total_N = tl.sum(total, axis=1)
    tl.store(
        out_ptr + route * H + columns_N, total_N.to(out_ptr.dtype.element_ty), mask=is_column_N
    )


def gate_up_int4_vector(
    x_TH: torch.Tensor,
    w13: Weight,
    ids_TK: torch.Tensor,
    expert_map_E: torch.Tensor | None,
    tiles: Tiles,
    *,
    out_PI: torch.Tensor,
    pdl: bool,
) -> None:
    """`vector.gate_up_vector`, which has checked the shapes."""
    width, H = w13.shape[1] // 2, w13.shape[2]
    tiles = within_groups(tiles, w13)
    grid = (ids_TK.numel() * triton.cdiv(width, tiles.block_n),)
    _gate_up_kernel[grid](
        x_TH, w13.values, w13.scales, w13.zeros, out_PI, ids_TK,
        ids_TK if expert_map_E is None else expert_map_E,
        K=ids_TK.shape[1], H=H, I=width, HAS_MAP=expert_map_E is not None,
        BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        num_warps=tiles.warps, **int4_options(w13), **launch_options(pdl),
    )  # fmt: skip


def down_int4_vector(
    inner_PI: torch.Tensor,
    w2: Weight,
    ids_TK: torch.Tensor,
    expert_map_E: torch.Tensor | None,
    tiles: Tiles,
    *,
    out_PH: torch.Tensor,
    pdl: bool,
) -> None:
    """`vector.down_vector`, which has checked the shapes."""
    _, H, width = w2.shape
    tiles = within_groups(tiles, w2)
    grid = (ids_TK.numel() * triton.cdiv(H, tiles.block_n),)
    _down_kernel[grid](
        inner_PI, w2.values, w2.scales, w2.zeros, out_PH, ids_TK,
        ids_TK if expert_map_E is None else expert_map_E,
        H=H, I=width, HAS_MAP=expert_map_E is not None,
        BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        num_warps=tiles.warps, **int4_options(w2), **launch_options(pdl),
    )  # fmt: skip
