"""The routed experts of a step in Triton: which kernels run, and in which buffers.

Owns the order align → gate/up → down; for few routes two matrix-vector kernels instead; and where
activations have eight bits. Whoever reads the routes' outputs sums them (`moe.base.sum_norm`). Does
not know how routes were chosen.
T tokens, K experts per token, P = T·K routes, E local experts, H hidden, I expert width.
"""

from __future__ import annotations

import torch

from moe.base.context import KernelContext
from moe.base.promoted_dot import specializes
from moe.base.quantize_rows import quantize_rows
from moe.base.quantized import Quantized, take_quantized
from moe.base.specialized_fp8 import (
    SPECIALIZED_ROWS,
    specialized_down,
    specialized_gate_up,
)
from moe.base.tiles import MANY_ROWS, ExpertTiles
from moe.base.weight import Weight
from moe.kernels.align import Alignment, align, max_tiles, scratch_size
from moe.kernels.foreign import drop_foreign
from moe.kernels.grouped import down, gate_up
from moe.kernels.vector import down_vector, gate_up_vector
from moe.kernels.wide_fp8 import down_fp8, experts_fit, gate_up_fp8

_SMALLEST_BLOCK = 16  # rows of a tile
# Rows an expert from which `specialized_fp8` is faster: with 64 it is not, with 256 by a third.
_SPECIALIZED_MEAN = 96


def expert_routes(
    hidden_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    ids_TK: torch.Tensor,
    w13: Weight,
    w2: Weight,
    expert_map_E: torch.Tensor | None,
    context: KernelContext,
    quantized_TH: Quantized | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of routes [T,K,H] and their weights [T,K], 0 for foreign routes, whose output is
    undefined.

    w13 [E,2I,H] has gate rows first, w2 is [E,H,I]; ids are global, −1 for none. `quantized_TH` is
    `hidden_TH` in eight bits, if anyone made it: a launch less where it is used.
    """
    T, K = ids_TK.shape
    E, H, width = w2.shape
    tiles = context.tiles.experts(E, width, H, T, T * K, weights=w2.kind)
    routes_PH = context.workspace.take("routes", (T * K, H), hidden_TH.dtype)
    if tiles.gate_up.block_m == 1:
        inner_PI = context.workspace.take("inner", (T * K, width), hidden_TH.dtype)
        routing, pdl = (ids_TK, expert_map_E), context.pdl
        gate_up_vector(hidden_TH, w13, *routing, tiles.gate_up, out_PI=inner_PI, pdl=pdl)
        down_vector(inner_PI, w2, *routing, tiles.down, out_PH=routes_PH, pdl=pdl)
    else:
        eight_bits = T >= MANY_ROWS and hidden_TH.itemsize == 2
        num_experts = E if expert_map_E is None else len(expert_map_E)
        specialized = eight_bits and _specializes(w13, w2, T * K / num_experts, context)
        block_m = SPECIALIZED_ROWS if specialized else tiles.gate_up.block_m
        aligned = _align(ids_TK, expert_map_E, E, block_m, context)
        if specialized or (eight_bits and experts_fit(tiles, w13, w2)):
            if quantized_TH is None:
                quantized_TH = take_quantized(context.workspace, "quantized", (T, H))
                quantize_rows(hidden_TH, out=quantized_TH, pdl=context.pdl)
            chosen = None if specialized else tiles
            _quantized_routes(quantized_TH, w13, w2, aligned, K, chosen, context, routes_PH)
        else:
            inner_PI = context.workspace.take("inner", (T * K, width), hidden_TH.dtype)
            gate_up(hidden_TH, w13, aligned, K, tiles.gate_up, out_PI=inner_PI, pdl=context.pdl)
            down(inner_PI, w2, aligned, tiles.down, out_PH=routes_PH, pdl=context.pdl)
    if expert_map_E is not None:
        out_TK = context.workspace.take("local_weights", (T, K), torch.float32)
        drop_foreign(weights_TK, ids_TK, expert_map_E, out_TK=out_TK, pdl=context.pdl)
        weights_TK = out_TK
    return routes_PH.view(T, K, H), weights_TK


def _specializes(w13: Weight, w2: Weight, mean_rows: float, context: KernelContext) -> bool:
    """Whether both GEMMs are those of `specialized_fp8`, whose tiles want many rows an expert."""
    return (
        context.specialized
        and mean_rows >= _SPECIALIZED_MEAN
        and specializes(w13, w13.shape[1])
        and specializes(w2, w2.shape[1])
    )


def _quantized_routes(
    x_TH: Quantized,
    w13: Weight,
    w2: Weight,
    aligned: Alignment,
    num_routes_per_token: int,
    tiles: ExpertTiles | None,
    context: KernelContext,
    out_PH: torch.Tensor,
) -> None:
    """Activations of eight bits, between the GEMMs too; without tiles by `specialized_fp8`."""
    shape, K, pdl = (out_PH.shape[0], w2.shape[2]), num_routes_per_token, context.pdl
    if tiles is None:
        inner_PI = take_quantized(context.workspace, "inner", shape)
        specialized_gate_up(x_TH, w13, aligned, K, out_PI=inner_PI)
        specialized_down(inner_PI, w2, aligned, out_PH=out_PH)
        return
    inner_PI = take_quantized(context.workspace, "inner", shape, tiles.gate_up.block_n)
    gate_up_fp8(x_TH, w13, aligned, K, tiles.gate_up, out_PI=inner_PI, pdl=pdl)
    down_fp8(inner_PI, w2, aligned, tiles.down, out_PH=out_PH, pdl=pdl)


def _align(
    ids_TK: torch.Tensor,
    expert_map_E: torch.Tensor | None,
    num_local: int,
    block_m: int,
    context: KernelContext,
) -> Alignment:
    """The routes in order of expert, in the workspace's buffers."""
    P = ids_TK.numel()
    # Room for the smallest tiles: it grows with the routes alone, whichever tiles they get.
    room = max_tiles(P, num_local, _SMALLEST_BLOCK)
    sizes = {"order": P, "offsets": num_local + 1, "tile_expert": room, "tile_start": room}
    sizes["scratch"] = scratch_size(P, num_local)
    buffers = {
        name: context.workspace.take(f"align_{name}", (size,), torch.int32)
        for name, size in sizes.items()
    }
    scratch = buffers.pop("scratch")
    num_tiles = max_tiles(P, num_local, block_m)
    for name in ("tile_expert", "tile_start"):
        buffers[name] = buffers[name][:num_tiles]
    out = Alignment(**buffers)
    return align(
        ids_TK.view(-1),
        expert_map_E,
        num_local,
        block_m,
        out=out,
        scratch=scratch,
        pdl=context.pdl,
    )
