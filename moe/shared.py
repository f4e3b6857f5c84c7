"""Experts that see every token, beside the routed ones.

Owns their weights and Qwen3-Next's gate on them. Does not know routing or collectives: where the
layer asks for a slice of the width, the results of the ranks add up to the whole.
T tokens, H hidden, I shared width, or this rank's part of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from moe.base.checkpoint import CheckpointSlice, part, whole
from moe.config import MoEConfig
from moe.runner import swiglu


class SharedExperts(nn.Module):
    """down(silu(gate) · up), times sigmoid(x · w) where gated.

    transformers' `Qwen3NextSparseMoeBlock` (gated) and `DeepseekV2Moe` (not).
    """

    def __init__(
        self,
        config: MoEConfig,
        *,
        slice_rank: int = 0,
        num_slices: int = 1,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.config = config
        self.width = config.shared_expert_size // num_slices
        assert self.width * num_slices == config.shared_expert_size
        self.first_column = slice_rank * self.width
        hidden = config.hidden_size
        w13 = torch.empty(2 * self.width, hidden, dtype=dtype, device=device)
        w2 = torch.empty(hidden, self.width, dtype=dtype, device=device)
        self.w13 = nn.Parameter(w13, requires_grad=False)
        self.w2 = nn.Parameter(w2, requires_grad=False)
        self.gate: nn.Parameter | None = None
        if config.shared_expert_gated:
            gate = torch.empty(1, hidden, dtype=dtype, device=device)
            self.gate = nn.Parameter(gate, requires_grad=False)

    def forward(self, hidden_TH: torch.Tensor) -> torch.Tensor:
        """[T,H]."""
        out_TH = F.linear(swiglu(F.linear(hidden_TH, self.w13)), self.w2)
        if self.gate is None:
            return out_TH
        return torch.sigmoid(F.linear(hidden_TH, self.gate)) * out_TH

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """`{prefix}shared_experts.*`, or `shared_expert.*` and `shared_expert_gate` where gated."""
        name = "shared_experts" if self.gate is None else "shared_expert"
        shape = (self.config.shared_expert_size, self.config.hidden_size)
        gate, up = torch.split(self.w13, self.width)
        for which, target in (("gate", gate), ("up", up)):
            weight = f"{prefix}{name}.{which}_proj.weight"
            yield part(weight, shape, 0, self.first_column, target)
        down = f"{prefix}{name}.down_proj.weight"
        yield part(down, shape[::-1], 1, self.first_column, self.w2)
        if self.gate is not None:
            yield whole(f"{prefix}shared_expert_gate.weight", self.gate)
