"""Dispatchers by name: how tokens reach the ranks that hold their experts, and come back."""

from __future__ import annotations

from collections.abc import Callable

import torch

from moe.base.context import KernelContext
from moe.dispatch.all_to_all import AllToAllDispatcher
from moe.dispatch.allgather_reducescatter import AllgatherReducescatterDispatcher
from moe.dispatch.base import Dispatcher
from moe.dispatch.deepep import refuse_deepep
from moe.dispatch.replicated import DisabledDispatcher, LocalAllreduceDispatcher
from moe.groups import ExpertGroups
from moe.placement import ExpertPlacement

__all__ = ["DISPATCHERS", "ExpertGroups", "make_dispatcher"]

DISPATCHERS: dict[
    str,
    Callable[[ExpertGroups, ExpertPlacement, torch.device | str, KernelContext | None], Dispatcher],
] = {
    "disabled": DisabledDispatcher,
    "local_allreduce": LocalAllreduceDispatcher,
    "allgather_reducescatter": AllgatherReducescatterDispatcher,
    "all_to_all": AllToAllDispatcher,
    "deepep": refuse_deepep,
}


def make_dispatcher(
    backend: str,
    groups: ExpertGroups,
    placement: ExpertPlacement,
    *,
    device: torch.device | str,
    context: KernelContext | None = None,
) -> Dispatcher:
    """The dispatcher of a `ParallelConfig.backend`; ValueError for the reserved deepep."""
    return DISPATCHERS[backend](groups, placement, device, context)
