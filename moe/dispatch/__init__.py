"""Dispatchers by name: how tokens reach the ranks that hold their experts, and come back."""

from __future__ import annotations

from collections.abc import Callable

import torch

from moe.base.context import KernelContext
from moe.dispatch.all_to_all import AllToAllDispatcher
from moe.dispatch.allgather_reducescatter import AllgatherReducescatterDispatcher
from moe.dispatch.base import Dispatcher
from moe.dispatch.replicated import ReplicatedDispatcher
from moe.groups import ExpertGroups
from moe.placement import ExpertPlacement

__all__ = ["DISPATCHERS", "ExpertGroups"]

# By `ParallelConfig.backend`, which never is the reserved deepep.
DISPATCHERS: dict[
    str,
    Callable[[ExpertGroups, ExpertPlacement, torch.device | str, KernelContext | None], Dispatcher],
] = {
    "disabled": ReplicatedDispatcher,
    "local_allreduce": ReplicatedDispatcher,
    "allgather_reducescatter": AllgatherReducescatterDispatcher,
    "all_to_all": AllToAllDispatcher,
}
