"""The routes of tokens to experts, and their weighted sum.

Owns `TopK` and what every runner and dispatcher must do alike. Does not know how experts compute
or where they are. T tokens, K experts per token, E experts, H hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class TopK(NamedTuple):
    """Where each token goes: `weights` fp32 [T,K], `ids` int32 [T,K], global, −1 for padding."""

    weights: torch.Tensor
    ids: torch.Tensor


def local_ids(ids_TK: torch.Tensor, expert_map_E: torch.Tensor | None) -> torch.Tensor:
    """Local expert index of each route, −1 where it is foreign or padding.

    `expert_map_E` is `ExpertPlacement.expert_map`, None when every expert is local. The result has
    the shape of `ids_TK`.
    """
    if expert_map_E is None:
        return ids_TK
    return torch.where(ids_TK < 0, -1, expert_map_E[ids_TK.clamp(min=0).long()])


def sum_routes(
    routes_TKH: torch.Tensor, weights_TK: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """[T,H] in `dtype`: weighted sum over k, accumulated in fp32 from k = 0 upwards.

    Multiply and add are separate elementwise operations, so that a row's bits depend neither on T
    nor on the rank that sums it.
    """
    weighted_TKH = routes_TKH.float() * weights_TK.unsqueeze(-1)
    total_TH = weighted_TKH[:, 0]
    for k in range(1, weighted_TKH.shape[1]):
        total_TH = total_TH + weighted_TKH[:, k]
    return total_TH.to(dtype)
