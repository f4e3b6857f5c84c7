"""How a rank's experts are computed: the choice of runners, and the fused one.

Owns the order of work: routes by local expert, one GEMM a group, SwiGLU, a second GEMM; in Triton
where there is a kernel context. Does not know which ranks exist or how weights were loaded.
T tokens, K experts per token, P = T·K routes, E local experts, H hidden, I (a part of) the expert
width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.quantized import Quantized
from moe.base.weight import Weight
from moe.kernels.experts import expert_routes
from moe.per_expert import legacy_experts
from moe.routes import TopK, local_ids

ExpertRunner = Callable[
    [
        torch.Tensor,
        TopK,
        Weight,
        Weight,
        torch.Tensor | None,
        KernelContext | None,
        Quantized | None,
    ],
    DeferredSum,
]


def fused_experts(
    hidden_TH: torch.Tensor,
    topk: TopK,
    w13: Weight,
    w2: Weight,
    expert_map_E: torch.Tensor | None,
    context: KernelContext | None = None,
    quantized_TH: Quantized | None = None,
) -> DeferredSum:
    """Outputs of the routes and their weights: the layer's [T,H] is their sum over k.

    w13 [E,2I,H] has gate rows first, w2 is [E,H,I]. `expert_map_E` maps global ids to local
    indices, −1 where foreign; None when all are local. A foreign route has the weight 0; one with
    an id of −1 (padding) must have it already where `expert_map_E` is None. With a `context`: no
    host sync, static shapes; `quantized_TH` as in `expert_routes`.
    """
    T, K = topk.ids.shape
    if T == 0 or w13.shape[0] == 0:
        return DeferredSum.of(torch.zeros_like(hidden_TH))
    if context is not None:
        routing = topk.weights, topk.ids
        return DeferredSum(
            *expert_routes(
                hidden_TH, *routing, w13, w2, expert_map_E, context, quantized_TH, topk.choice
            )
        )
    local_P = local_ids(topk.ids, expert_map_E).flatten()
    # Below two routes an expert a matrix-vector product each beats sorting them.
    way = _vector_routes if 2 * w13.shape[0] >= T * K else _sorted_routes
    routes_PH = way(hidden_TH, local_P, w13, w2)
    weights_TK = topk.weights.masked_fill(local_P.view(T, K) < 0, 0.0)
    return DeferredSum(routes_PH.view(T, K, -1), weights_TK)


RUNNERS: dict[str, ExpertRunner] = {"fused": fused_experts, "legacy": legacy_experts}


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """[…,2I] → […,I]: silu(gate) · up in fp32, cast back."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def _vector_routes(
    hidden_TH: torch.Tensor, local_P: torch.Tensor, w13: Weight, w2: Weight
) -> torch.Tensor:
    """Outputs [P,H] of routes, 0 for expert −1: one matrix-vector product a route."""
    K, dtype = local_P.numel() // hidden_TH.shape[0], hidden_TH.dtype
    held = [(route, expert) for route, expert in enumerate(local_P.tolist()) if expert >= 0]
    gate_up = hidden_TH.new_empty(len(held), w13.shape[1])
    for row, (route, expert) in enumerate(held):
        torch.mv(w13[expert].plain(dtype), hidden_TH[route // K], out=gate_up[row])
    inner = swiglu(gate_up)
    routes_PH = hidden_TH.new_zeros(local_P.numel(), w2.shape[1])
    for row, (route, expert) in enumerate(held):
        torch.mv(w2[expert].plain(dtype), inner[row], out=routes_PH[route])
    return routes_PH


def _sorted_routes(
    hidden_TH: torch.Tensor, local_P: torch.Tensor, w13: Weight, w2: Weight
) -> torch.Tensor:
    """As `_vector_routes`: one GEMM for each expert hit, over routes sorted by expert."""
    K, dtype = local_P.numel() // hidden_TH.shape[0], hidden_TH.dtype
    counts = torch.bincount(local_P + 1, minlength=w13.shape[0] + 1).tolist()
    order = local_P.argsort(stable=True)[counts[0] :]
    hits = [(expert, count) for expert, count in enumerate(counts[1:]) if count]
    sizes = [count for _, count in hits]
    gathered = hidden_TH[order // K]
    gate_up = hidden_TH.new_empty(len(order), w13.shape[1])
    for (expert, _), rows, out in zip(
        hits, torch.split(gathered, sizes), torch.split(gate_up, sizes), strict=True
    ):
        torch.mm(rows, w13[expert].plain(dtype).t(), out=out)
    inner = swiglu(gate_up)
    for (expert, _), rows, out in zip(
        hits, torch.split(inner, sizes), torch.split(gathered, sizes), strict=True
    ):
        torch.mm(rows, w2[expert].plain(dtype).t(), out=out)
    routes_PH = hidden_TH.new_zeros(local_P.numel(), w2.shape[1])
    routes_PH[order] = gathered
    return routes_PH
