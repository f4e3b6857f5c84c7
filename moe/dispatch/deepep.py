"""deepep: the reserved name and its split interface.

Owns the shape that overlap needs: each exchange begins, other work runs, then it ends. Does not
know DeepEP itself, which is not installed.
"""

from __future__ import annotations

from typing import Protocol

import torch

from moe.base.context import KernelContext
from moe.base.parallel import DEEPEP_UNAVAILABLE
from moe.base.summands import Summands
from moe.dispatch.base import Dispatched, Dispatcher, Share
from moe.groups import ExpertGroups
from moe.placement import ExpertPlacement
from moe.routes import TopK


class SplitDispatcher(Protocol):
    """A dispatcher whose two exchanges may run beside other work.

    What `begin` returns is handed to the `end` of the same exchange, once.
    """

    def dispatch_begin(self, share: Share, topk: TopK) -> object:
        """Starts sending the share."""
        ...

    def dispatch_end(self, begun: object) -> Dispatched:
        """Waits for what this rank's experts compute."""
        ...

    def combine_begin(self, expert_out: Summands, dispatched: Dispatched) -> object:
        """Starts sending results back."""
        ...

    def combine_end(self, begun: object, shared: Summands | None) -> Summands:
        """Waits for the replica's sum to [T,H]."""
        ...


def refuse_deepep(
    groups: ExpertGroups,
    placement: ExpertPlacement,
    device: torch.device | str,
    context: KernelContext | None,
) -> Dispatcher:
    """Raises ValueError: reserved, not installed, and what to use instead."""
    raise ValueError(DEEPEP_UNAVAILABLE)
