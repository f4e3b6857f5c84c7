"""disabled: every rank holds a slice of every expert's width, and the slices are summed."""

from __future__ import annotations

import torch

from moe.base.context import KernelContext
from moe.dispatch.replicated import ReplicatedDispatcher
from moe.groups import ExpertGroups
from moe.placement import ExpertPlacement


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
