"""allgather_reducescatter: gather every rank's tokens, compute local routes, reduce to the owner.

Owns the padding to one share size and the two collectives. Shapes depend on `max_tokens` only, so a
CUDA graph can hold it. S rows of a share, V real ones, N ranks, K experts per token, H hidden.
"""

from __future__ import annotations

import torch

from moe.base.collectives import all_gather_rows, reduce_scatter_rows
from moe.base.deferred_sum import DeferredSum
from moe.dispatch.base import Dispatched, TokenShare
from moe.dispatch.shares import ShareDispatcher, join_shares, pad_rows
from moe.routes import TopK


class AllgatherReducescatterDispatcher(ShareDispatcher):
    """All-gather to [N·S,H], reduce-scatter to [S,H]; with tp > 1 an all-gather over tp."""

    def dispatch(self, share: TokenShare, topk: TopK) -> Dispatched:
        """[N·S,H] of all ranks; padding rows have ids of −1.

        Weights and ids travel as one int32 tensor [S,2K].
        """
        hidden_SH = pad_rows(share.hidden, share.num_rows)
        weights_SK = pad_rows(topk.weights, share.num_rows)
        ids_SK = pad_rows(topk.ids, share.num_rows, value=-1)
        routes = torch.cat((weights_SK.view(torch.int32), ids_SK), dim=1)
        weights, ids = all_gather_rows(routes, self.group).chunk(2, dim=1)
        return Dispatched(
            hidden=all_gather_rows(hidden_SH, self.group),
            topk=TopK(weights.contiguous().view(torch.float32), ids.contiguous()),
            share=share,
        )

    def combine(
        self, expert_out: DeferredSum, dispatched: Dispatched, shared: DeferredSum | None
    ) -> DeferredSum:
        """[N·S,H] → this rank's [S,H], plus shared experts → the replica's [T,H]."""
        rows = expert_out.total(dispatched.hidden.dtype, self.context)
        out_SH = reduce_scatter_rows(rows, self.group)
        if shared is not None:
            shared.add_to(out_SH[: dispatched.share.hidden.shape[0]], self.context)
        return DeferredSum.of(join_shares(out_SH, dispatched.share, self.groups))
