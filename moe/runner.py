"""How a rank's experts are computed: the choice of runners, and the fused one.

Owns the order of work: routes sorted by local expert, one GEMM a group, SwiGLU, a second GEMM,
weights, sum over k. Does not know which ranks exist or how weights were loaded.
T tokens, K experts per token, P = T·K routes, E local experts, H hidden, I (a part of) the expert
width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from moe.legacy import legacy_experts
from moe.routes import TopK, local_ids, sum_routes

Runner = Callable[
    [torch.Tensor, TopK, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor
]


def fused_experts(
    hidden_TH: torch.Tensor,
    topk: TopK,
    w13: torch.Tensor,
    w2: torch.Tensor,
    expert_map_E: torch.Tensor | None,
) -> torch.Tensor:
    """[T,H] in the dtype of `hidden_TH`: Σ_k weight · w2·(silu(gate)·up) over local routes.

    w13 [E,2I,H] has gate rows first, w2 is [E,H,I]. `expert_map_E` maps global ids to local
    indices, −1 where foreign; None when all are local. A foreign route, or an id of −1 (padding),
    adds exactly 0, whatever its row and weight hold. On CUDA: no host sync, static shapes.
    """
    T, K = topk.ids.shape
    if T == 0 or w13.shape[0] == 0:
        return torch.zeros_like(hidden_TH)
    local_P = local_ids(topk.ids, expert_map_E).flatten()
    routes_PH = _choose(hidden_TH, local_P, w13)(hidden_TH, local_P, w13, w2)
    weights_TK = topk.weights.masked_fill(local_P.view(T, K) < 0, 0.0)
    return sum_routes(routes_PH.view(T, K, -1), weights_TK, hidden_TH.dtype)


RUNNERS: dict[str, Runner] = {"fused": fused_experts, "legacy": legacy_experts}


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """[…,2I] → […,I]: silu(gate) · up in fp32, cast back."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


# From tokens [T,H], local expert of each route [P] and weights to the routes' outputs [P,H], where
# a route of expert −1 is 0.
_RoutesFn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _choose(hidden_TH: torch.Tensor, local_P: torch.Tensor, w13: torch.Tensor) -> _RoutesFn:
    """The way that suits device, dtype and shape; nothing on the device is looked at."""
    if not hidden_TH.is_cuda:
        # Below two routes an expert a matrix-vector product each beats sorting them.
        return _vector_routes if local_P.numel() <= 2 * w13.shape[0] else _sorted_routes
    aligned = w13.shape[1] % 16 == 0 and w13.shape[2] % 8 == 0
    return _grouped_routes if hidden_TH.dtype == torch.bfloat16 and aligned else _masked_routes


def _vector_routes(
    hidden_TH: torch.Tensor, local_P: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """One matrix-vector product a route: few routes on a CPU."""
    K = local_P.numel() // hidden_TH.shape[0]
    held = [(route, expert) for route, expert in enumerate(local_P.tolist()) if expert >= 0]
    gate_up = hidden_TH.new_empty(len(held), w13.shape[1])
    for row, (route, expert) in enumerate(held):
        torch.mv(w13[expert], hidden_TH[route // K], out=gate_up[row])
    inner = swiglu(gate_up)
    routes_PH = hidden_TH.new_zeros(local_P.numel(), w2.shape[1])
    for row, (route, expert) in enumerate(held):
        torch.mv(w2[expert], inner[row], out=routes_PH[route])
    return routes_PH


def _sorted_routes(
    hidden_TH: torch.Tensor, local_P: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """One GEMM for each expert hit, over routes sorted by expert: many routes on a CPU."""
    K = local_P.numel() // hidden_TH.shape[0]
    counts = torch.bincount(local_P + 1, minlength=w13.shape[0] + 1).tolist()
    order = local_P.argsort(stable=True)[counts[0] :]
    hits = [(expert, count) for expert, count in enumerate(counts[1:]) if count]
    sizes = [count for _, count in hits]
    gathered = hidden_TH[order // K]
    gate_up = hidden_TH.new_empty(len(order), w13.shape[1])
    for (expert, _), rows, out in zip(
        hits, torch.split(gathered, sizes), torch.split(gate_up, sizes), strict=True
    ):
        torch.mm(rows, w13[expert].t(), out=out)
    inner = swiglu(gate_up)
    for (expert, _), rows, out in zip(
        hits, torch.split(inner, sizes), torch.split(gathered, sizes), strict=True
    ):
        torch.mm(rows, w2[expert].t(), out=out)
    routes_PH = hidden_TH.new_zeros(local_P.numel(), w2.shape[1])
    routes_PH[order] = gathered
    return routes_PH


def _grouped_routes(
    hidden_TH: torch.Tensor, local_P: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """Grouped GEMMs with offsets that stay on the device: bf16 on CUDA.

    Foreign routes are sorted to the end, past the last offset, where grouped_mm leaves memory as it
    was: they are selected away, not multiplied away.
    """
    num_experts = w13.shape[0]
    K = local_P.numel() // hidden_TH.shape[0]
    key_P = torch.where(local_P < 0, num_experts, local_P)
    sorted_P, order_P = key_P.sort(stable=True)
    experts = torch.arange(num_experts, device=key_P.device, dtype=key_P.dtype)
    offsets = torch.searchsorted(sorted_P, experts, right=True, out_int32=True)
    gate_up = F.grouped_mm(hidden_TH[order_P // K], w13.transpose(1, 2), offs=offsets)
    sorted_PH = F.grouped_mm(swiglu(gate_up), w2.transpose(1, 2), offs=offsets)
    routes_PH = torch.empty_like(sorted_PH)
    routes_PH[order_P] = sorted_PH
    return routes_PH.masked_fill((local_P < 0).unsqueeze(1), 0.0)


def _masked_routes(
    hidden_TH: torch.Tensor, local_P: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """Every local expert over every token, then selection: other dtypes and odd sizes on CUDA.

    E/K times the arithmetic, for static shapes without a host sync.
    """
    T = hidden_TH.shape[0]
    local_TK1 = local_P.view(T, -1, 1)
    routes_TKH = hidden_TH.new_zeros(T, local_TK1.shape[1], w2.shape[1])
    for expert in range(w13.shape[0]):
        out_TH = F.linear(swiglu(F.linear(hidden_TH, w13[expert])), w2[expert])
        routes_TKH = torch.where(local_TK1 == expert, out_TH.unsqueeze(1), routes_TKH)
    return routes_TKH.flatten(0, 1)
