"""The gate on what attention found, before its output projection: a module, and plain torch.

transformers' LagunaAttention and AfmoeAttention. T tokens, H hidden, N heads of this rank, V width
of a value.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice
from moe.base.quantized import Quantized
from workers.attention.kernels.output_gate import output_gate
from workers.attention.spec import AttentionSpec, GateActivation
from workers.layers.linear import ColumnParallelLinear
from workers.models.base import BuildContext
from workers.models.query_rows import gate_shards


class OutputGate(nn.Module):
    """``attended · f(G x)``, a gate for each head or for each of its numbers, f the spec's.

    Args:
        prefix: of attention's name in the checkpoint, ending in a dot.
    """

    def __init__(
        self, spec: AttentionSpec, hidden_size: int, build: BuildContext, prefix: str
    ) -> None:
        super().__init__()
        self.context = build.context
        self.activation = spec.gate_activation
        rank, share = build.groups.tp_rank, spec.num_heads // build.groups.tp_size
        shards = gate_shards(spec, range(rank * share, (rank + 1) * share))
        self.g_proj = ColumnParallelLinear(
            hidden_size,
            shards,
            build.dtype,
            build.device,
            build.context,
            build.format_of(f"{prefix}{name}" for name in dict(shards)),
        )

    def forward(
        self, attended_TW: torch.Tensor, hidden_TH: torch.Tensor, quantized_TH: Quantized | None
    ) -> torch.Tensor:
        """``[T, N·V]``; by kernels in the place of ``attended_TW``."""
        gates_STG = self.g_proj(hidden_TH, quantized_TH)
        if self.context is None:
            return gated(attended_TW, gates_STG[0], self.activation)
        return output_gate(gates_STG, attended_TW, self.activation, pdl=self.context.pdl)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        return self.g_proj.checkpoint_slices(prefix)


def gated(
    attended_TW: torch.Tensor, gates_TG: torch.Tensor, activation: GateActivation
) -> torch.Tensor:
    """The oracle of `output_gate`: each gate weighs as many numbers as there are for one."""
    gates_TG = gates_TG.float()
    gates_TG = gates_TG.sigmoid() if activation == "sigmoid" else F.softplus(gates_TG)
    gates_TG1 = gates_TG.to(attended_TW.dtype)[:, :, None]
    weighed: torch.Tensor = attended_TW.unflatten(1, (gates_TG.shape[1], -1)) * gates_TG1
    return weighed.flatten(1)
