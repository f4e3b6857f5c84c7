"""Tokens that every rank of a replica already has: nothing is sent, the ranks' parts are summed.

Owns that exchange for `disabled` and `local_allreduce`, which differ in what a rank's part is and
over whom it is summed. T tokens, H hidden.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from moe.base.collectives import all_reduce
from moe.base.context import KernelContext
from moe.base.summands import Summands
from moe.dispatch.base import Dispatched, Share
from moe.groups import ExpertGroups
from moe.placement import ExpertPlacement
from moe.routes import TopK


class ReplicatedDispatcher:
    """No dispatch; one all-reduce [T,H] over ``group``, none for a group of one."""

    def __init__(self, group: dist.ProcessGroup | None, context: KernelContext | None) -> None:
        self.group = group
        self.context = context

    def share(self, hidden_TH: torch.Tensor, max_tokens: int) -> Share:
        """All tokens: they are replicated."""
        num_tokens = hidden_TH.shape[0]
        return Share(hidden=hidden_TH, num_tokens=num_tokens, num_rows=num_tokens)

    def dispatch(self, share: Share, topk: TopK) -> Dispatched:
        """The share as it is; the runner drops foreign routes."""
        return Dispatched(hidden=share.hidden, topk=topk, share=share)

    def combine(
        self, expert_out: Summands, dispatched: Dispatched, shared: Summands | None
    ) -> Summands:
        """This rank's part of routed and shared experts, summed in one all-reduce; a rank that is
        alone leaves the sum to its reader."""
        both = expert_out.plus(shared)
        if self.group is None:
            return both
        out_TH = both.total(dispatched.hidden.dtype, self.context)
        return Summands.of(all_reduce(out_TH, self.group))


class DisabledDispatcher(ReplicatedDispatcher):
    """One all-reduce [T,H] over the tp ranks, none when tp = 1."""

    def __init__(
        self,
        groups: ExpertGroups,
        placement: ExpertPlacement,
        device: torch.device | str,
        context: KernelContext | None,
    ) -> None:
        assert placement.num_ranks == 1
        super().__init__(groups.tp_group, context)


class LocalAllreduceDispatcher(ReplicatedDispatcher):
    """One all-reduce [T,H] over the ranks that share the experts."""

    def __init__(
        self,
        groups: ExpertGroups,
        placement: ExpertPlacement,
        device: torch.device | str,
        context: KernelContext | None,
    ) -> None:
        assert groups.dp_size == 1
        assert placement.num_ranks == groups.ep_size
        super().__init__(groups.ep_group, context)
