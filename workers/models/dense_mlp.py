"""A dense MLP. Shapes: T tokens of the step, H hidden, I width on this rank."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice
from moe.base.deferred_sum import DeferredSum
from moe.base.quantized import Quantized
from moe.base.swiglu import swiglu
from workers.config_json.model_config import ModelConfig
from workers.layers.linear import ColumnParallelLinear, RowParallelLinear, ShardRows
from workers.models.base import BuildContext, ForwardBatch


class DenseMLP(nn.Module):
    """``down(silu(gate x) * up x)``, I / tp wide on each rank. ``prefix`` ends in ``mlp.``."""

    router_weight: torch.Tensor | None = None

    def __init__(self, config: ModelConfig, build: BuildContext, prefix: str) -> None:
        super().__init__()
        groups, dtype, device = build.groups, build.dtype, build.device
        self.context = context = build.context
        rows = ShardRows.shard(config.intermediate_size, groups.tp_rank, groups.tp_size)
        shards = {"gate_proj": rows, "up_proj": rows}
        weight_format = build.format_of(f"{prefix}{name}" for name in shards)
        self.gate_up_proj = ColumnParallelLinear(
            config.hidden_size, shards, dtype, device, context, weight_format
        )
        weight_format = build.format_of([f"{prefix}down_proj"])
        self.down_proj = RowParallelLinear(
            config.intermediate_size,
            config.hidden_size,
            groups,
            dtype,
            device,
            context,
            weight_format,
        )

    def forward(
        self,
        hidden_TH: torch.Tensor,
        batch: ForwardBatch,
        quantized_TH: Quantized | None = None,
        logits_STE: torch.Tensor | None = None,
    ) -> DeferredSum:
        """Each token by itself, padding too: nothing of the batch is read."""
        assert logits_STE is None
        partials_STW: torch.Tensor = self.gate_up_proj(hidden_TH, quantized_TH)
        inner_TI: torch.Tensor | Quantized
        if self.context is None:
            gate, up = partials_STW[0].chunk(2, dim=-1)
            inner_TI = F.silu(gate) * up
        else:
            inner_TI = self.down_proj.rows(len(hidden_TH), "inner")
            swiglu(partials_STW, out_TI=inner_TI, pdl=self.context.pdl)
        update: DeferredSum = self.down_proj(inner_TI)
        return update

    def takes_quantized(self, num_tokens: int) -> bool:
        """Whether so many tokens are multiplied in eight bits."""
        return self.gate_up_proj.takes_quantized(num_tokens)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        yield from self.gate_up_proj.checkpoint_slices(prefix)
        yield from self.down_proj.checkpoint_slices(f"{prefix}down_proj.")
