"""How often each expert is asked for, and how many a step had to read.

Owns the routes of a step's sparse layers and the counts made of them. Does not know where routes
come from. L sparse layers, E experts, P routes of a step.
"""

from __future__ import annotations

import torch

from moe.base.context import KernelContext
from moe.kernels.expert_load import expert_load


class ExpertLoad:
    """Counts over the steps of a rank.

    `routes_vary` says that a layer's routes come from an exchange whose size nobody knows ahead:
    unused places of `ids_LP` hold −1, and all are read.

    `ids_LP` int32 takes a step's routes, global ids, −1 for none. `load_LE` int64 adds up routes an
    expert was asked for; `hits_L` int32 says how many of this rank's experts the last step hit.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_experts: int,
        routes_per_token: int,
        max_tokens: int,
        routes_vary: bool,
        first_local: int,
        num_local: int,
        device: torch.device,
        context: KernelContext | None,
    ) -> None:
        self.routes_per_token = routes_per_token
        self.routes_vary = routes_vary
        self.first_local = first_local
        self.num_local = num_local
        self.context = context
        max_routes = max_tokens * routes_per_token
        self.ids_LP = torch.full((num_layers, max_routes), -1, dtype=torch.int32, device=device)
        self.load_LE = torch.zeros(num_layers, num_experts, dtype=torch.int64, device=device)
        self.hits_L = torch.zeros(num_layers, dtype=torch.int32, device=device)

    def count(self, num_tokens: int) -> None:
        """Take in what a step left in `ids_LP`: routes of `num_tokens` tokens."""
        num_routes = num_tokens * self.routes_per_token
        if self.routes_vary:
            num_routes = self.ids_LP.shape[1]
        if self.context is not None:
            expert_load(
                self.ids_LP,
                num_routes,
                self.load_LE,
                self.hits_L,
                self.first_local,
                self.num_local,
                pdl=self.context.pdl,
            )
            return
        num_layers, num_experts = self.load_LE.shape
        ids_LP = self.ids_LP[:, :num_routes].long()
        # One more column takes what is no route.
        keys_LP = torch.where(ids_LP < 0, num_experts, ids_LP)
        step_LE = torch.zeros(num_layers, num_experts + 1, dtype=torch.int64, device=ids_LP.device)
        step_LE.scatter_add_(1, keys_LP, torch.ones_like(keys_LP))
        self.load_LE += step_LE[:, :num_experts]
        local = slice(self.first_local, self.first_local + self.num_local)
        self.hits_L.copy_((step_LE[:, local] > 0).sum(dim=1))
