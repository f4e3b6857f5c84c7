"""The sparse block of a transformer layer: route, dispatch, compute, combine.

Owns the order of these steps and the names a checkpoint gives them. Does not know what runs before
or after it, nor whether the tokens are prefill or decode. T tokens of this replica, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.parallel import ParallelConfig
from moe.base.quantized import Quantized
from moe.base.tiles import MANY_ROWS
from moe.base.weight_format import WeightFormat
from moe.config import MoEConfig, check_widths
from moe.dispatch import DISPATCHERS
from moe.dispatch.base import TokenShare
from moe.experts import FusedMoeExperts
from moe.groups import ExpertGroups
from moe.placement import ExpertPlacement
from moe.router import TopKRouter
from moe.routes import TopK
from moe.shared import SharedExperts


class SparseMoeBlock(nn.Module):
    """hidden [T,H] → a sum to [T,H], replicated over the tp ranks of a replica on both sides.

    `runner` is a name from `moe.runner.RUNNERS`. With a `context` the work is done by Triton
    kernels. Raises ValueError where the widths of experts do not divide by tp and the backend needs
    it.

    `out_ids_P`, int32, takes the ids of the routes that this rank computes in each step.
    `experts_format` and `shared_format` are those of weights that have fewer bits than `dtype`; a
    router's have not.
    """

    def __init__(
        self,
        config: MoEConfig,
        parallel: ParallelConfig,
        groups: ExpertGroups,
        runner: str,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        context: KernelContext | None = None,
        out_ids_P: torch.Tensor | None = None,
        experts_format: WeightFormat | None = None,
        shared_format: WeightFormat | None = None,
    ) -> None:
        super().__init__()
        assert (parallel.tp, parallel.dp, parallel.ep) == (
            groups.tp_size,
            groups.dp_size,
            groups.ep_size,
        )
        check_widths(config, parallel)
        placement = ExpertPlacement(
            num_experts=config.num_experts, num_ranks=groups.ep_size, rank=groups.ep_rank
        )
        self.gate = TopKRouter(config, dtype=dtype, device=device, context=context)
        num_slices = parallel.tp if parallel.ep == 1 else 1
        self.experts = FusedMoeExperts(
            config,
            placement,
            runner=runner,
            slice_rank=groups.tp_rank % num_slices,
            num_slices=num_slices,
            dtype=dtype,
            device=device,
            context=context,
            weight_format=experts_format,
        )
        self.shared_experts: SharedExperts | None = None
        if config.shared_expert_size:
            num_slices = parallel.tp if parallel.tokens_replicated else 1
            self.shared_experts = SharedExperts(
                config,
                slice_rank=groups.tp_rank % num_slices,
                num_slices=num_slices,
                dtype=dtype,
                device=device,
                context=context,
                weight_format=shared_format,
            )
        self.dispatcher = DISPATCHERS[parallel.backend](groups, placement, device, context)
        self.context = context
        self.tokens_replicated = parallel.tokens_replicated
        self.needs_host_sync = parallel.needs_host_sync
        self.out_ids_P = out_ids_P

    def forward(
        self,
        hidden_TH: torch.Tensor,
        max_tokens: int,
        num_valid: torch.Tensor | None = None,
        quantized_TH: Quantized | None = None,
        logits_STE: torch.Tensor | None = None,
    ) -> DeferredSum:
        """`max_tokens` is the largest T of any replica in this step, a host number.

        Tokens from `num_valid`, int32 [1] on the device, on are padding, which no expert computes.
        `quantized_TH` is `hidden_TH` in eight bits, `logits_STE` parts of its products with
        `router_weight`, if anyone made them.
        Every rank calls it in every step, also with T = 0: the other ranks wait for it.
        """
        if max_tokens == 0:
            return DeferredSum.of(hidden_TH)
        share = self.dispatcher.share(hidden_TH, max_tokens)
        num_valid = self._valid_of(share, num_valid)
        num_tokens = share.hidden.shape[0]
        defer = self.tokens_replicated and self.experts.chooses(num_tokens)
        assert logits_STE is None or self.tokens_replicated
        out_ids_P = self._ids_of(share.hidden)
        topk = self.gate(share.hidden, num_valid, out_ids_P, defer=defer, logits_STE=logits_STE)
        dispatched = self.dispatcher.dispatch(share, topk)
        self._keep(dispatched.topk)
        if not self.tokens_replicated:  # a share and what is exchanged are other rows
            quantized_TH = None
        expert_out = self.experts(dispatched.hidden, dispatched.topk, quantized_TH)
        shared = None
        if self.shared_experts is not None:
            shared = self.shared_experts(share.hidden, quantized_TH)
        return self.dispatcher.combine(expert_out, dispatched, shared)

    @property
    def router_weight(self) -> torch.Tensor | None:
        """What whoever makes the rows may multiply them with; None where others' are routed too."""
        return self.gate.weight if self.tokens_replicated else None

    def takes_quantized(self, num_tokens: int) -> bool:
        """Whether so many tokens of this replica are computed in eight bits, some of the layer's at
        least."""
        if num_tokens >= MANY_ROWS:
            return True
        return self.tokens_replicated and self.experts.takes_quantized(num_tokens)

    def _valid_of(self, share: TokenShare, num_valid: torch.Tensor | None) -> torch.Tensor | None:
        """Number of tokens in the share that are no padding; it may be negative where all are."""
        if num_valid is None or not share.first_row:
            return num_valid
        if self.context is None:
            return num_valid - share.first_row
        out = self.context.workspace.take("num_valid", (1,), torch.int32)
        return torch.sub(num_valid, share.first_row, out=out)

    def _ids_of(self, hidden_TH: torch.Tensor) -> torch.Tensor | None:
        """Where the router may write ids at once: they are the ones this rank computes."""
        if self.out_ids_P is None or not self.tokens_replicated:
            return None
        return self.out_ids_P[: hidden_TH.shape[0] * self.gate.config.num_experts_per_tok]

    def _keep(self, topk: TopK) -> None:
        """Record the ids that came from the exchange."""
        if self.out_ids_P is None or self.tokens_replicated:
            return
        if self.needs_host_sync:
            self.out_ids_P.fill_(-1)
        self.out_ids_P[: topk.ids.numel()].copy_(topk.ids.flatten())

    def checkpoint_slices(
        self, prefix: str, packed: bool = False, packed_scales: bool = False
    ) -> Iterator[CheckpointSlice]:
        """Every tensor of the block; `prefix` ends in `mlp.`, the rest as in `FusedMoeExperts`."""
        yield from self.gate.checkpoint_slices(prefix)
        yield from self.experts.checkpoint_slices(prefix, packed, packed_scales)
        if self.shared_experts is not None:
            yield from self.shared_experts.checkpoint_slices(prefix)
