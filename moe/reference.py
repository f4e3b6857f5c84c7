"""The oracle: a sparse layer from its whole weights, one token and one route at a time, in fp64.

Owns the definition that runners, dispatchers and kernels are compared with, and shares no code with
them. Does not know ranks, dtypes or speed. T tokens, K experts per token, E experts, H hidden, I
expert width.
"""

from __future__ import annotations

import torch


def reference_experts(
    hidden_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    ids_TK: torch.Tensor,
    gate_EIH: torch.Tensor,
    up_EIH: torch.Tensor,
    down_EHI: torch.Tensor,
) -> torch.Tensor:
    """fp64 [T,H]: Σ_k weight · down·(silu(gate·x) · up·x); an id of −1 is skipped."""
    out_TH = torch.zeros(hidden_TH.shape, dtype=torch.float64, device=hidden_TH.device)
    for token, ids_K in enumerate(ids_TK.tolist()):
        for k, expert in enumerate(ids_K):
            if expert >= 0:
                y_H = reference_mlp(
                    hidden_TH[token], gate_EIH[expert], up_EIH[expert], down_EHI[expert]
                )
                out_TH[token] += weights_TK[token, k].double() * y_H
    return out_TH


def reference_mlp(
    hidden_H: torch.Tensor, gate_IH: torch.Tensor, up_IH: torch.Tensor, down_HI: torch.Tensor
) -> torch.Tensor:
    """fp64 [H]: one expert on one token."""
    x_H = hidden_H.double()
    gate_I = gate_IH.double() @ x_H
    up_I = up_IH.double() @ x_H
    return down_HI.double() @ (gate_I / (1 + torch.exp(-gate_I)) * up_I)
