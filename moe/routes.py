"""The routes of tokens to experts.

Owns `TopK` and the map from global to local expert ids, which every runner needs alike. Does not
know how experts compute or where they are. T tokens, K experts per token, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from moe.kernels.topk import Choice


class TopK(NamedTuple):
    """Where each token goes: `weights` fp32 [T,K], `ids` int32 [T,K], global, −1 for padding.

    With a `choice` nobody has chosen yet: the kernels that compute the experts do, and write both.
    """

    weights: torch.Tensor
    ids: torch.Tensor
    choice: Choice | None = None


def local_ids(ids_TK: torch.Tensor, expert_map_E: torch.Tensor | None) -> torch.Tensor:
    """Local expert index of each route, −1 where it is foreign or padding.

    `expert_map_E` is `ExpertPlacement.expert_map`, None when every expert is local. The result has
    the shape of `ids_TK`.
    """
    if expert_map_E is None:
        return ids_TK
    return torch.where(ids_TK < 0, -1, expert_map_E[ids_TK.clamp(min=0).long()])
