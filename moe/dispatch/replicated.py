"""Tokens that every rank of a replica already has: nothing is sent, the ranks' parts are summed.

Owns that exchange for `disabled`, where a rank's part is a slice of every expert, and
`local_allreduce`, where it is whole experts. T tokens, H hidden.
"""

from __future__ import annotations

import torch

from moe.base.collectives import all_reduce
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.dispatch.base import Dispatched, TokenShare
from moe.groups import ExpertGroups
from moe.placement import ExpertPlacement
from moe.routes import TopK


class ReplicatedDispatcher:
    """No dispatch; one all-reduce [T,H] over the ranks that share the experts or, where each holds
    a slice of all, over tp; none for a group of one."""

    def __init__(
        self,
        groups: ExpertGroups,
        placement: ExpertPlacement,
        device: torch.device | str,
        context: KernelContext | None,
    ) -> None:
        assert placement.num_ranks == groups.ep_size
        assert groups.ep_size == 1 or groups.dp_size == 1
        self.group = groups.tp_group if groups.ep_size == 1 else groups.ep_group
        self.context = context

    def share(self, hidden_TH: torch.Tensor, max_tokens: int) -> TokenShare:
        """All tokens: they are replicated."""
        num_tokens = hidden_TH.shape[0]
        return TokenShare(hidden=hidden_TH, num_tokens=num_tokens, num_rows=num_tokens)

    def dispatch(self, share: TokenShare, topk: TopK) -> Dispatched:
        """The share as it is; the runner drops foreign routes."""
        return Dispatched(hidden=share.hidden, topk=topk, share=share)

    def combine(
        self, expert_out: DeferredSum, dispatched: Dispatched, shared: DeferredSum | None
    ) -> DeferredSum:
        """This rank's part of routed and shared experts, summed in one all-reduce; a rank that is
        alone leaves the sum to its reader."""
        both = expert_out.plus(shared)
        if self.group is None:
            return both
        out_TH = both.total(dispatched.hidden.dtype, self.context)
        return DeferredSum.of(all_reduce(out_TH, self.group))
