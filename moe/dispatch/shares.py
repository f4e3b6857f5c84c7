"""How the tp ranks of a replica divide its replicated tokens, and put them together again.

Owns the arithmetic of shares, and what dispatchers of shares have in common. Does not know experts.
T tokens, S rows of a share, V real ones.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from moe.base.collectives import all_gather_rows
from moe.base.context import KernelContext
from moe.dispatch.base import TokenShare
from moe.groups import ExpertGroups
from moe.placement import ExpertPlacement


class ShareDispatcher:
    """Half a dispatcher: each tp rank routes its part of its replica's tokens."""

    def __init__(
        self,
        groups: ExpertGroups,
        placement: ExpertPlacement,
        device: torch.device | str,
        context: KernelContext | None,
    ) -> None:
        assert groups.ep_group is not None
        assert placement.num_ranks == groups.ep_size
        self.groups = groups
        self.group = groups.ep_group
        self.context = context

    def share(self, hidden_TH: torch.Tensor, max_tokens: int) -> TokenShare:
        """This tp rank's part of its replica's tokens."""
        return take_share(hidden_TH, max_tokens, self.groups)


def take_share(hidden_TH: torch.Tensor, max_tokens: int, groups: ExpertGroups) -> TokenShare:
    """Rows [r·S, r·S + S) of [T,H], with S = ceil(max_tokens / tp) and r the tp rank."""
    num_tokens = hidden_TH.shape[0]
    if num_tokens > max_tokens:
        raise ValueError(
            f"a replica has {num_tokens} tokens in a step of max_tokens={max_tokens}: "
            "max_tokens must be the most that any replica has"
        )
    num_rows = -(-max_tokens // groups.tp_size)
    start = min(groups.tp_rank * num_rows, num_tokens)
    stop = min(start + num_rows, num_tokens)
    return TokenShare(
        hidden=hidden_TH[start:stop], num_tokens=num_tokens, num_rows=num_rows, first_row=start
    )


def join_shares(out_SH: torch.Tensor, share: TokenShare, groups: ExpertGroups) -> torch.Tensor:
    """[T,H] of the replica from every tp rank's [S,H]."""
    if groups.tp_group is not None:
        out_SH = all_gather_rows(out_SH, groups.tp_group)
    return out_SH[: share.num_tokens]


def pad_rows(rows: torch.Tensor, num_rows: int, value: float = 0.0) -> torch.Tensor:
    """[V,…] → [num_rows,…], new rows filled with `value`."""
    missing = num_rows - rows.shape[0]
    return rows if missing == 0 else F.pad(rows, (0, 0, 0, missing), value=value)
