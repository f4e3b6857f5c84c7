"""How often each expert is asked for, and how many a step had to read.

Owns the routes of a step's sparse layers and the counts made of them. Does not know where routes
come from. L sparse layers, E experts, P routes of a step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from moe.base.context import KernelContext
from moe.base.parallel import ParallelConfig
from moe.config import MoEConfig
from moe.kernels.expert_load import expert_load
from moe.placement import ExpertPlacement


class StepSize(NamedTuple):
    """Tokens that a layer sees in a step: of this replica, and the most of any."""

    num_tokens: int
    max_tokens: int


class ExpertCounters:
    """Counts over the steps of a rank.

    Args:
        max_tokens: most tokens of a step on one replica.
        has_last: the model's last layer is the last of these.

    Attributes:
        ids_LP: int32, takes a step's routes: global ids, −1 for none. A layer's routes may come
            from an exchange whose size nobody knows ahead; then all of its row is read.
        load_LE: int64, adds up the routes that each expert was asked for.
    """

    def __init__(
        self,
        config: MoEConfig,
        parallel: ParallelConfig,
        placement: ExpertPlacement,
        *,
        num_layers: int,
        max_tokens: int,
        device: torch.device,
        context: KernelContext | None,
        has_last: bool = True,
    ) -> None:
        self.parallel = parallel
        self.has_last = has_last
        self.context = context
        self.routes_per_token = config.num_experts_per_tok
        self.first_local = placement.start
        self.num_local = placement.num_local
        max_routes = expert_rows(parallel, max_tokens, max_tokens) * self.routes_per_token
        self.ids_LP = torch.full((num_layers, max_routes), -1, dtype=torch.int32, device=device)
        self.load_LE = torch.zeros(num_layers, config.num_experts, dtype=torch.int64, device=device)

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.load_LE)

    def count(self, step: StepSize, last: StepSize, *, out_hits_L: torch.Tensor) -> None:
        """Take in what a step left in `ids_LP`.

        Args:
            step: what layers saw; last: the model's last one.
            out_hits_L: int32, takes how many of this rank's experts the step hit.
        """
        num_routes = self._num_routes(step)
        num_last = self._num_routes(last) if self.has_last else num_routes
        if self.context is None:
            self._count(num_routes, num_last, out_hits_L)
            return
        expert_load(
            self.ids_LP,
            num_routes,
            num_last,
            self.load_LE,
            out_hits_L,
            self.first_local,
            self.num_local,
            pdl=self.context.pdl,
        )

    def reset(self) -> None:
        """Forget all that was counted."""
        self.load_LE.zero_()

    def _num_routes(self, size: StepSize) -> int:
        """That count, of a layer's row."""
        if self.parallel.needs_host_sync:
            return self.ids_LP.shape[1]
        return expert_rows(self.parallel, *size) * self.routes_per_token

    def _count(self, num_routes: int, num_last: int, out_hits_L: torch.Tensor) -> None:
        num_layers, num_experts = self.load_LE.shape
        ids_LP = self.ids_LP[:, :num_routes].long()
        ids_LP[-1, num_last:] = -1
        # One more column takes what is no route.
        keys_LP = torch.where(ids_LP < 0, num_experts, ids_LP)
        step_LE = torch.zeros(num_layers, num_experts + 1, dtype=torch.int64, device=ids_LP.device)
        step_LE.scatter_add_(1, keys_LP, torch.ones_like(keys_LP))
        self.load_LE += step_LE[:, :num_experts]
        local = slice(self.first_local, self.first_local + self.num_local)
        out_hits_L.copy_((step_LE[:, local] > 0).sum(dim=1))


def expert_rows(parallel: ParallelConfig, num_tokens: int, max_tokens: int) -> int:
    """Tokens a rank computes experts for in a step: its replica's, or every replica's with shares
    rounded up.

    Args:
        num_tokens: of this replica; max_tokens: most of any replica.
    """
    if parallel.tokens_replicated:
        return num_tokens
    return parallel.world_size * -(-max_tokens // parallel.tp)
