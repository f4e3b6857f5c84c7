"""Expert GEMMs of a few tokens: a stream of weights without tensor cores or alignment.

Owns two matrix-vector kernels; a program takes one route and some rows of its expert's matrix.
T tokens, K experts per token, P = T·K routes, E local experts, H hidden, I expert width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe.base.launch import launch_options, wait_for_previous
from moe.base.scaled_dot import num_sums, products, scale_options, scale_rows, within_blocks
from moe.base.silu import silu
from moe.base.tiles import INT4_NAME, Tiles
from moe.base.weight import Weight
from moe.kernels.int4_vector import down_int4_vector, gate_up_int4_vector
from moe.kernels.locate import chosen_expert
from moe.kernels.topk import Choice, store_choice


@triton.jit
def _gate_up_vector_kernel(
    x_ptr, w13_ptr, scales_ptr, inner_ptr, choice, weights_ptr, ids_ptr, map_ptr,
    K: tl.constexpr, H: tl.constexpr, I: tl.constexpr, HAS_MAP: tl.constexpr, CHOOSES: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """With a `Choice` a program more a token writes down what all others choose for themselves."""
    num_n: tl.constexpr = (I + BLOCK_N - 1) // BLOCK_N
    num_programs: tl.constexpr = K * num_n + CHOOSES
    token, place = tl.program_id(0) // num_programs, tl.program_id(0) % num_programs
    if CHOOSES:  # noqa: SIM102 - the kernel's language evaluates both sides of `and`
        if place == K * num_n:
            store_choice(choice, token, weights_ptr, ids_ptr, PDL)
            return
    route, n = token * K + place // num_n, place % num_n
    wait_for_previous(PDL)
    expert = chosen_expert(choice, ids_ptr, map_ptr, route, HAS_MAP, CHOOSES)
    if expert < 0:
        return
    columns_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column_N = columns_N < I
    ks = tl.arange(0, BLOCK_K)
    gate_ptrs = w13_ptr + expert.to(tl.int64) * (2 * I * H) + columns_N[:, None] * H + ks[None, :]
    x_ptrs = x_ptr + (route // K) * H + ks
    row = n * BLOCK_N
    sums: tl.constexpr = (BLOCK_N, num_sums(BLOCK_K, SCALES, BK))
    gate, up = tl.zeros(sums, dtype=tl.float32), tl.zeros(sums, dtype=tl.float32)
    for k in tl.static_range(0, H, BLOCK_K):
        if H % BLOCK_K == 0 and I % BLOCK_N == 0:
            x = tl.load(x_ptrs + k).to(tl.float32)
            w_gate = tl.load(gate_ptrs + k, eviction_policy="evict_first")
            w_up = tl.load(gate_ptrs + I * H + k, eviction_policy="evict_first")
        else:
            is_k = ks + k < H
            is_w = is_column_N[:, None] & is_k[None, :]
            x = tl.load(x_ptrs + k, mask=is_k, other=0.0).to(tl.float32)
            w_gate = tl.load(gate_ptrs + k, mask=is_w, other=0.0)
            w_up = tl.load(gate_ptrs + I * H + k, mask=is_w, other=0.0)
        gate += products(w_gate, x, scales_ptr, 2 * expert, row, k, I, H, SCALES, BN, BK)
        up += products(w_up, x, scales_ptr, 2 * expert + 1, row, k, I, H, SCALES, BN, BK)
    gate_N, up_N = tl.sum(gate, axis=1), tl.sum(up, axis=1)
    gate_N = scale_rows(gate_N, scales_ptr, 2 * expert, columns_N, is_column_N, I, SCALES, False)
    up_N = scale_rows(up_N, scales_ptr, 2 * expert + 1, columns_N, is_column_N, I, SCALES, False)
    inner_N = silu(gate_N) * up_N
    tl.store(
        inner_ptr + route * I + columns_N,
        inner_N.to(inner_ptr.dtype.element_ty),
        mask=is_column_N,
    )


@triton.jit
def _down_vector_kernel(
    inner_ptr, w2_ptr, scales_ptr, out_ptr, choice, ids_ptr, map_ptr,
    H: tl.constexpr, I: tl.constexpr, HAS_MAP: tl.constexpr, CHOOSES: tl.constexpr,
    SCALES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    num_n: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    route, n = tl.program_id(0) // num_n, tl.program_id(0) % num_n
    columns_N = n * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column_N = columns_N < H
    ks = tl.arange(0, BLOCK_K)
    # Routes or logits are older than the kernel before, gate·up, which has waited for them itself.
    expert = chosen_expert(choice, ids_ptr, map_ptr, route, HAS_MAP, CHOOSES)
    if expert < 0:
        if PDL:
            tl.extra.cuda.gdc_wait()
        return
    w_ptrs = w2_ptr + expert.to(tl.int64) * (H * I) + columns_N[:, None] * I + ks[None, :]
    wait_for_previous(PDL)
    total = tl.zeros((BLOCK_N, num_sums(BLOCK_K, SCALES, BK)), dtype=tl.float32)
    for k in tl.static_range(0, I, BLOCK_K):
        if I % BLOCK_K == 0 and H % BLOCK_N == 0:
            inner = tl.load(inner_ptr + route * I + k + ks).to(tl.float32)
            w = tl.load(w_ptrs + k, eviction_policy="evict_first")
        else:
            is_k = ks + k < I
            inner = tl.load(inner_ptr + route * I + k + ks, mask=is_k, other=0.0).to(tl.float32)
            w = tl.load(w_ptrs + k, mask=is_column_N[:, None] & is_k[None, :], other=0.0)
        total += products(w, inner, scales_ptr, expert, n * BLOCK_N, k, H, I, SCALES, BN, BK)
    total_N = tl.sum(total, axis=1)
    total_N = scale_rows(total_N, scales_ptr, expert, columns_N, is_column_N, H, SCALES, False)
    tl.store(
        out_ptr + route * H + columns_N, total_N.to(out_ptr.dtype.element_ty), mask=is_column_N
    )


def gate_up_vector(
    x_TH: torch.Tensor,
    w13: Weight,
    ids_TK: torch.Tensor,
    expert_map_E: torch.Tensor | None,
    tiles: Tiles,
    *,
    out_PI: torch.Tensor,
    pdl: bool,
    choice: Choice | None = None,
    out_weights_TK: torch.Tensor | None = None,
) -> None:
    """silu(gate·x) · (up·x) of every local route, at the route's own row.

    w13 [E,2I,H] has gate rows first; ids are global, −1 for none. Rows of other routes stay as they
    are. With a ``choice`` ids and weights are written as `select_experts` does; experts of four
    bits take none.
    """
    E, double, H = w13.shape
    width = double // 2
    assert w13.values.is_contiguous() and x_TH.is_contiguous() and ids_TK.is_contiguous()
    assert x_TH.shape[1] == H and out_PI.shape == (ids_TK.numel(), width)
    if w13.kind == INT4_NAME:
        assert choice is None
        routing = ids_TK, expert_map_E
        gate_up_int4_vector(x_TH, w13, *routing, tiles, out_PI=out_PI, pdl=pdl)
        return
    tiles = within_blocks(tiles, w13)
    T, K = ids_TK.shape
    num_programs = K * triton.cdiv(width, tiles.block_n) + (choice is not None)
    _gate_up_vector_kernel[(T * num_programs,)](
        x_TH, w13.values, w13.scales, out_PI, choice, out_weights_TK, ids_TK,
        ids_TK if expert_map_E is None else expert_map_E,
        K=K, H=H, I=width, HAS_MAP=expert_map_E is not None, CHOOSES=choice is not None,
        BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        num_warps=tiles.warps, **scale_options(w13), **launch_options(pdl),
    )  # fmt: skip


def down_vector(
    inner_PI: torch.Tensor,
    w2: Weight,
    ids_TK: torch.Tensor,
    expert_map_E: torch.Tensor | None,
    tiles: Tiles,
    *,
    out_PH: torch.Tensor,
    pdl: bool,
    choice: Choice | None = None,
) -> None:
    """down·inner of every local route, at the route's own row. w2 [E,H,I]; a ``choice`` is the one
    of `gate_up_vector`."""
    E, H, width = w2.shape
    assert w2.values.is_contiguous() and inner_PI.is_contiguous() and ids_TK.is_contiguous()
    assert inner_PI.shape == (ids_TK.numel(), width) and out_PH.shape == (ids_TK.numel(), H)
    if w2.kind == INT4_NAME:
        assert choice is None
        routing = ids_TK, expert_map_E
        down_int4_vector(inner_PI, w2, *routing, tiles, out_PH=out_PH, pdl=pdl)
        return
    tiles = within_blocks(tiles, w2)
    grid = (ids_TK.numel() * triton.cdiv(H, tiles.block_n),)
    _down_vector_kernel[grid](
        inner_PI, w2.values, w2.scales, out_PH, choice, ids_TK,
        ids_TK if expert_map_E is None else expert_map_E,
        H=H, I=width, HAS_MAP=expert_map_E is not None, CHOOSES=choice is not None,
        BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        num_warps=tiles.warps, **scale_options(w2), **launch_options(pdl),
    )  # fmt: skip
