"""all_to_all: a token travels once to each rank that holds one of its experts.

Owns the exchange and the weighted sum at the owner, in order of k: a token's bits are those it has
without expert parallelism. Splits vary with the routes, and the host reads their sizes once a
layer: not for CUDA graphs. V tokens of a rank's share, N ranks, K experts per token, U rows
received, R routes received, H hidden.
"""

from __future__ import annotations

import torch

from moe.base.collectives import exchange_rows
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.dispatch.base import Dispatched, Exchange, TokenShare
from moe.dispatch.shares import ShareDispatcher, join_shares, pad_rows
from moe.groups import ExpertGroups
from moe.placement import ExpertPlacement
from moe.routes import TopK


class AllToAllDispatcher(ShareDispatcher):
    """Tokens [V,H] out, one result row a route back, all-gather over tp when tp > 1."""

    def __init__(
        self,
        groups: ExpertGroups,
        placement: ExpertPlacement,
        device: torch.device | str,
        context: KernelContext | None,
    ) -> None:
        super().__init__(groups, placement, device, context)
        self.owners_E = placement.owners(device)
        self.ranks_N11 = torch.arange(groups.ep_size, device=device).view(-1, 1, 1)

    def dispatch(self, share: TokenShare, topk: TopK) -> Dispatched:
        """The [R,H] rows whose expert is here, one a route, each with the weight 1.

        Routes are ordered by rank, token and k on both sides, so no index travels back.
        """
        owners_VK = self.owners_E[topk.ids.long().clamp(min=0)]
        goes_NVK = (owners_VK == self.ranks_N11) & (topk.ids >= 0)  # padding goes nowhere
        sends_NV = goes_NVK.any(dim=-1)
        counts = torch.stack((sends_NV.sum(dim=1), goes_NVK.sum(dim=(1, 2))), dim=1)
        ones = [1] * self.groups.ep_size
        their_counts = exchange_rows(counts, ones, ones, self.group)
        rows_sent, routes_sent, rows_received, routes_received = (
            torch.cat((counts, their_counts), dim=1).t().tolist()
        )
        ranks, tokens = sends_NV.nonzero(as_tuple=True)
        ids_sent = topk.ids[tokens].masked_fill(~goes_NVK[ranks, tokens], -1)
        hidden_UH = exchange_rows(share.hidden[tokens], rows_sent, rows_received, self.group)
        ids_UK = exchange_rows(ids_sent, rows_sent, rows_received, self.group)
        rows, ks = (ids_UK >= 0).nonzero(as_tuple=True)
        ids_R1 = ids_UK[rows, ks].unsqueeze(1)
        return Dispatched(
            hidden=hidden_UH[rows],
            topk=TopK(torch.ones_like(ids_R1, dtype=torch.float32), ids_R1),
            share=share,
            exchange=Exchange(
                route_index=goes_NVK.flatten(1).nonzero(as_tuple=True)[1],
                num_sent=routes_sent,
                num_received=routes_received,
                topk=topk,
            ),
        )

    def combine(
        self, expert_out: DeferredSum, dispatched: Dispatched, shared: DeferredSum | None
    ) -> DeferredSum:
        """Results go back to the owner, which weighs and sums them: the replica's [T,H]."""
        exchange = dispatched.exchange
        assert exchange is not None
        rows_RH = expert_out.total(dispatched.hidden.dtype, self.context)
        back = exchange_rows(rows_RH, exchange.num_received, exchange.num_sent, self.group)
        ids_VK = exchange.topk.ids
        routes = back.new_zeros(ids_VK.numel(), back.shape[1])
        routes[exchange.route_index] = back
        routes_VKH = routes.view(*ids_VK.shape, back.shape[1])
        routed = DeferredSum(routes_VKH, exchange.topk.weights)
        out_VH = routed.plus(shared).total(back.dtype, self.context)
        out_SH = pad_rows(out_VH, dispatched.share.num_rows)
        return DeferredSum.of(join_shares(out_SH, dispatched.share, self.groups))
