"""The routed experts of a step in Triton: which kernels run, and in which buffers.

Owns the order align → gate/up → down; for few routes two matrix-vector kernels instead. Which
kernels take activations of eight bits is `eight_bits`' business; whoever reads the routes' outputs
sums them (`moe.base.sum_norm`). Does not know how routes were chosen.
T tokens, K experts per token, P = T·K routes, E local experts, H hidden, I expert width.
"""

from __future__ import annotations

import torch

from moe.base.context import KernelContext
from moe.base.quantize_rows import quantize_rows
from moe.base.quantized import Quantized, take_quantized
from moe.base.tiles import FP8_NAME
from moe.base.weight import Weight
from moe.kernels.align import Alignment, align, max_tiles, scratch_size
from moe.kernels.eight_bits import eight_bit_gemms, tiles_of
from moe.kernels.foreign import drop_foreign
from moe.kernels.grouped import down, gate_up
from moe.kernels.topk import Choice
from moe.kernels.vector import down_vector, gate_up_vector

_SMALLEST_BLOCK = 16  # rows of a tile


def expert_routes(
    hidden_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    ids_TK: torch.Tensor,
    w13: Weight,
    w2: Weight,
    expert_map_E: torch.Tensor | None,
    context: KernelContext,
    quantized_TH: Quantized | None = None,
    choice: Choice | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of routes [T,K,H] and their weights [T,K], 0 for foreign routes, whose output is
    undefined.

    w13 [E,2I,H] has gate rows first, w2 is [E,H,I]; ids are global, −1 for none. `quantized_TH` is
    `hidden_TH` in eight bits, if anyone made it: a launch less where it is used. With a `choice`,
    where `takes_choice`, ids and weights are written here.
    """
    T, K = ids_TK.shape
    E, H, width = w2.shape
    eight_bits = eight_bit_gemms(T, K, w13, w2, expert_map_E, context)
    routes_PH = context.workspace.take("routes", (T * K, H), hidden_TH.dtype)
    if eight_bits is not None:
        assert choice is None
        aligned = _align(ids_TK, expert_map_E, E, eight_bits.block_m, context)
        if quantized_TH is None:
            quantized_TH = take_quantized(context.workspace, "quantized", (T, H))
            quantize_rows(hidden_TH, out=quantized_TH, pdl=context.pdl)
        own_PI = take_quantized(context.workspace, "inner", (T * K, width), eight_bits.group)
        eight_bits.gate_up(quantized_TH, w13, aligned, K, out_PI=own_PI)
        eight_bits.down(own_PI, w2, aligned, out_PH=routes_PH)
    else:
        inner_PI = context.workspace.take("inner", (T * K, width), hidden_TH.dtype)
        tiles, pdl = tiles_of(T, K, w2, context), context.pdl
        if tiles.gate_up.block_m == 1:
            routing = ids_TK, expert_map_E
            gate_up_vector(
                hidden_TH, w13, *routing, tiles.gate_up,
                out_PI=inner_PI, pdl=pdl, choice=choice, out_weights_TK=weights_TK,
            )  # fmt: skip
            down_vector(
                inner_PI, w2, *routing, tiles.down, out_PH=routes_PH, pdl=pdl, choice=choice
            )
        else:
            assert choice is None
            aligned = _align(ids_TK, expert_map_E, E, tiles.gate_up.block_m, context)
            gate_up(hidden_TH, w13, aligned, K, tiles.gate_up, out_PI=inner_PI, pdl=pdl)
            down(inner_PI, w2, aligned, tiles.down, out_PH=routes_PH, pdl=pdl)
    if expert_map_E is not None:
        out_TK = context.workspace.take("local_weights", (T, K), torch.float32)
        drop_foreign(weights_TK, ids_TK, expert_map_E, out_TK=out_TK, pdl=context.pdl)
        weights_TK = out_TK
    return routes_PH.view(T, K, H), weights_TK


def takes_choice(num_tokens: int, K: int, w13: Weight, w2: Weight, context: KernelContext) -> bool:
    """Whether so many tokens' experts are computed by kernels that choose them: a launch less."""
    # Programs of plain weights are twice as many, those of more tokens have more warps: there
    # choosing takes as long as the launch, or longer.
    if num_tokens != 1 or w13.kind != FP8_NAME:
        return False
    return tiles_of(num_tokens, K, w2, context).gate_up.block_m == 1


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
