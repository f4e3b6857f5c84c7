"""What every dispatcher does, and the handles between its steps.

Owns the protocol `share → (route) → dispatch → (compute) → combine`. Does not know routers, weights
or runners. T tokens of this replica, S rows of a rank's share, V ≤ S of them real, R rows that this
rank computes, K experts per token, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from moe.base.deferred_sum import DeferredSum
from moe.routes import TopK


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenShare:
    """The tokens a rank routes: `hidden` [V,H], of its replica's `num_tokens` T.

    They start at row `first_row`; `num_rows` is S, the same on every rank of the step.
    """

    hidden: torch.Tensor
    num_tokens: int
    num_rows: int
    first_row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exchange:
    """What all_to_all sent, so that the results find their way back.

    `route_index` [V·K] is the flat (token, k) of each route in the order its result comes back;
    `num_sent` and `num_received` count routes a rank.
    """

    route_index: torch.Tensor
    num_sent: list[int]
    num_received: list[int]
    topk: TopK


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dispatched:
    """What this rank's experts compute: `hidden` [R,H] and `topk` of those rows, ids global."""

    hidden: torch.Tensor
    topk: TopK
    share: TokenShare
    exchange: Exchange | None = None


class Dispatcher(Protocol):
    """Brings tokens to experts and back. Every rank calls each step, also without tokens."""

    def share(self, hidden_TH: torch.Tensor, max_tokens: int) -> TokenShare:
        """The part of its replica's tokens that this rank routes.

        `max_tokens` is the largest T over all replicas in this step, the same number on all ranks.
        """
        ...

    def dispatch(self, share: TokenShare, topk: TopK) -> Dispatched:
        """Sends the share to the ranks that hold its experts; `topk` is [V,K]."""
        ...

    def combine(
        self, expert_out: DeferredSum, dispatched: Dispatched, shared: DeferredSum | None
    ) -> DeferredSum:
        """A sum to [T,H], the same on all tp ranks of a replica: `expert_out`, a sum to [R,H], plus
        `shared`, a sum to [V,H] without weights.

        `shared` is what shared experts made of the share: a slice of their width where tokens are
        replicated, the whole otherwise.
        """
        ...
