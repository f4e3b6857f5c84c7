"""The packed weights of the routed experts a rank holds.

Owns the parameters, how a checkpoint fills them in place, and the map from global ids to them.
Does not know routing, collectives, or how a runner computes. E experts, H hidden, I expert width;
a rank holds E_local whole experts, or an I_part-wide slice of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice, part, unread
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.weight import Weight, held_weight
from moe.config import MoEConfig
from moe.placement import ExpertPlacement
from moe.routes import TopK
from moe.runner import RUNNERS


class FusedMoeExperts(nn.Module):
    """w13 [E_local, 2·I_part, H] with gate rows first, and w2 [E_local, H, I_part].

    `placement` says which experts; `slice_rank` of `num_slices` says which I_part columns of each.
    """

    expert_map: torch.Tensor | None

    def __init__(
        self,
        config: MoEConfig,
        placement: ExpertPlacement,
        *,
        runner: str,
        slice_rank: int = 0,
        num_slices: int = 1,
        dtype: torch.dtype,
        device: torch.device | str,
        context: KernelContext | None = None,
    ) -> None:
        super().__init__()
        self.context = context
        self.config = config
        self.placement = placement
        self.width = config.intermediate_size // num_slices
        assert self.width * num_slices == config.intermediate_size
        self.first_column = slice_rank * self.width
        self.run = RUNNERS[runner]
        count, hidden = placement.num_local, config.hidden_size
        w13 = torch.empty(count, 2 * self.width, hidden, dtype=dtype, device=device)
        w2 = torch.empty(count, hidden, self.width, dtype=dtype, device=device)
        self.w13 = held_weight(self, "w13", Weight(w13))
        self.w2 = held_weight(self, "w2", Weight(w2))
        every = count == config.num_experts
        expert_map = None if every else placement.expert_map(device)
        self.register_buffer("expert_map", expert_map, persistent=False)

    def forward(self, hidden_TH: torch.Tensor, topk: TopK) -> DeferredSum:
        """What this rank's experts add for `topk`, whose ids are global: a sum to [T,H]."""
        return self.run(hidden_TH, topk, self.w13, self.w2, self.expert_map, self.context)

    def checkpoint_slices(self, prefix: str, packed: bool = False) -> Iterator[CheckpointSlice]:
        """`prefix` ends in `experts.`.

        Per expert (the Hub's names, which save_pretrained writes too): `{g}.gate_proj.weight` and
        `{g}.up_proj.weight` [I,H], `{g}.down_proj.weight` [H,I]. Packed (transformers 5's own
        modules): `gate_up_proj` [E,2I,H], `down_proj` [E,H,I].
        """
        if packed:
            yield from self._packed_slices(prefix)
            return
        for expert in range(self.config.num_experts):
            yield from self._expert_slices(f"{prefix}{expert}.", expert - self.placement.start)

    def _expert_slices(self, prefix: str, local: int) -> Iterator[CheckpointSlice]:
        width, hidden = self.config.intermediate_size, self.config.hidden_size
        names = [f"{prefix}{name}_proj.weight" for name in ("gate", "up", "down")]
        shapes = [(width, hidden), (width, hidden), (hidden, width)]
        if not 0 <= local < self.placement.num_local:
            yield from map(unread, names, shapes)
            return
        gate, up = torch.split(self.w13.values[local], self.width)
        for name, shape, dim, target in zip(
            names, shapes, (0, 0, 1), (gate, up, self.w2.values[local]), strict=True
        ):
            yield part(name, shape, dim, self.first_column, target)

    def _packed_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        config = self.config
        experts, width, hidden = config.num_experts, config.intermediate_size, config.hidden_size
        w13_shape, w2_shape = (experts, 2 * width, hidden), (experts, hidden, width)
        names = f"{prefix}gate_up_proj", f"{prefix}down_proj"
        if not self.placement.num_local:
            yield from map(unread, names, (w13_shape, w2_shape))
            return
        local = slice(self.placement.start, self.placement.stop)
        columns = slice(self.first_column, self.first_column + self.width)
        gate, up = torch.split(self.w13.values, self.width, dim=1)
        for first_row, target in ((0, gate), (width, up)):
            rows = slice(first_row + columns.start, first_row + columns.stop)
            yield CheckpointSlice(names[0], w13_shape, (local, rows, slice(0, hidden)), target)
        yield CheckpointSlice(
            names[1], w2_shape, (local, slice(0, hidden), columns), self.w2.values
        )
