"""local_allreduce: every rank sees all tokens and computes the routes whose expert it holds; the
ranks' parts are summed."""

from __future__ import annotations

import torch

from moe.base.context import KernelContext
from moe.dispatch.replicated import ReplicatedDispatcher
from moe.groups import ExpertGroups
from moe.placement import ExpertPlacement


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
