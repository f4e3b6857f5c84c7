"""local_allreduce: every rank sees all tokens and computes those routes whose expert it holds.

Owns the sum of the ranks' parts. T tokens, H hidden.
"""

from __future__ import annotations

import torch

from moe.dispatch.base import Dispatched, Share
from moe.groups import ExpertGroups, all_reduce
from moe.placement import ExpertPlacement
from moe.routes import TopK


class LocalAllreduceDispatcher:
    """No dispatch; one all-reduce [T,H] over the ranks that share the experts."""

    def __init__(
        self, groups: ExpertGroups, placement: ExpertPlacement, device: torch.device | str
    ) -> None:
        assert groups.dp_size == 1
        assert placement.num_ranks == groups.ep_size
        self.group = groups.ep_group

    def share(self, hidden_TH: torch.Tensor, max_tokens: int) -> Share:
        """All tokens: they are replicated."""
        num_tokens = hidden_TH.shape[0]
        return Share(hidden=hidden_TH, num_tokens=num_tokens, num_rows=num_tokens)

    def dispatch(self, share: Share, topk: TopK) -> Dispatched:
        """The share as it is; the runner drops foreign routes."""
        return Dispatched(hidden=share.hidden, topk=topk, share=share)

    def combine(
        self, expert_out_TH: torch.Tensor, dispatched: Dispatched, shared_TH: torch.Tensor | None
    ) -> torch.Tensor:
        """[T,H]: local routes and a slice of the shared experts, summed in one all-reduce."""
        out_TH = expert_out_TH if shared_TH is None else expert_out_TH + shared_TH
        return all_reduce(out_TH, self.group)
