"""Experts as a loop over plain MLPs, one expert at a time: the runner `legacy`, reference
for the fused one.

Owns nothing but the loop. Does not know ranks, sorting or packing tricks. It looks at the routes on
the host, so it never runs inside a CUDA graph.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.quantized import Quantized
from moe.base.weight import Weight
from moe.routes import TopK, local_ids


def legacy_experts(
    hidden_TH: torch.Tensor,
    topk: TopK,
    w13: Weight,
    w2: Weight,
    expert_map_E: torch.Tensor | None,
    context: KernelContext | None = None,
    quantized_TH: Quantized | None = None,
) -> DeferredSum:
    """As `moe.runner.fused_experts`: one expert after the other, each over its tokens."""
    T, K = topk.ids.shape
    local_TK = local_ids(topk.ids, expert_map_E)
    routes_TKH = hidden_TH.new_zeros(T, K, hidden_TH.shape[1])
    for expert in torch.unique(local_TK[local_TK >= 0]).tolist():
        tokens, ks = torch.where(local_TK == expert)
        routes_TKH[tokens, ks] = mlp(hidden_TH[tokens], w13[expert], w2[expert])
    weights_TK = topk.weights.masked_fill(local_TK < 0, 0.0)
    return DeferredSum(routes_TKH, weights_TK)


def mlp(hidden_TH: torch.Tensor, w13: Weight, w2: Weight) -> torch.Tensor:
    """down(silu(gate(x)) · up(x)), with gate and up [I,H] stacked in `w13`, down [H,I] in `w2`."""
    dtype = hidden_TH.dtype
    gate, up = F.linear(hidden_TH, w13.plain(dtype)).float().chunk(2, dim=-1)
    return F.linear((F.silu(gate) * up).to(dtype), w2.plain(dtype))
