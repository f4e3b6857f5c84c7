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

from moe.base.checkpoint_slice import CheckpointSlice, whole
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.gemm import linear_parts, rows_for
from moe.base.quantize import empty_weight
from moe.base.quantized import Quantized
from moe.base.swiglu import swiglu as swiglu_kernel
from moe.base.weight import held_weight
from moe.base.weight_format import WeightFormat
from moe.base.weight_slices import weight_part
from moe.config import MoEConfig
from moe.runner import swiglu


class SharedExperts(nn.Module):
    """down(silu(gate) · up), times sigmoid(x · w) where gated.

    transformers' `Qwen3NextSparseMoeBlock` (gated) and `DeepseekV2Moe` (not). With a `context` the
    work is done by Triton kernels. `weight_format` is that of all matrices but the gate's.
    """

    def __init__(
        self,
        config: MoEConfig,
        *,
        slice_rank: int = 0,
        num_slices: int = 1,
        dtype: torch.dtype,
        device: torch.device | str,
        context: KernelContext | None = None,
        weight_format: WeightFormat | None = None,
    ) -> None:
        super().__init__()
        self.weight_format = weight_format
        self.context = context
        self.config = config
        self.width = config.shared_expert_size // num_slices
        assert self.width * num_slices == config.shared_expert_size
        self.first_column = slice_rank * self.width
        hidden = config.hidden_size
        w13 = empty_weight((2 * self.width, hidden), weight_format, dtype=dtype, device=device)
        w2 = empty_weight((hidden, self.width), weight_format, dtype=dtype, device=device)
        self.w13 = held_weight(self, "w13", w13)
        self.w2 = held_weight(self, "w2", w2)
        self.gate: nn.Parameter | None = None
        if config.shared_expert_gated:
            gate = torch.empty(1, hidden, dtype=dtype, device=device)
            self.gate = nn.Parameter(gate, requires_grad=False)

    def forward(
        self, hidden_TH: torch.Tensor, quantized_TH: Quantized | None = None
    ) -> DeferredSum:
        """A sum to [T,H], without weights; `quantized_TH` is `hidden_TH` in eight bits, if anyone
        made it."""
        if self.context is not None:
            return self._kernels(hidden_TH, quantized_TH, self.context)
        dtype = hidden_TH.dtype
        inner_TI = swiglu(F.linear(hidden_TH, self.w13.plain(dtype)))
        out_TH = F.linear(inner_TI, self.w2.plain(dtype))
        if self.gate is not None:
            out_TH = torch.sigmoid(F.linear(hidden_TH, self.gate)) * out_TH
        return DeferredSum.of(out_TH)

    def _kernels(
        self, hidden_TH: torch.Tensor, quantized_TH: Quantized | None, context: KernelContext
    ) -> DeferredSum:
        """The gate weighs what goes into `down`, which is linear: a launch less."""
        inner_TI = rows_for(self.w2, len(hidden_TH), context, "shared_inner")
        swiglu_kernel(
            linear_parts(hidden_TH, self.w13, context, "shared_gate_up", quantized_MK=quantized_TH),
            out_TI=inner_TI,
            pdl=context.pdl,
            hidden_TH=None if self.gate is None else hidden_TH,
            scale_1H=self.gate,
        )
        parts_STH = linear_parts(inner_TI, self.w2, context, "shared_down")
        return DeferredSum(parts_STH.transpose(0, 1))

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """`prefix` is that of the block; names are `MoEConfig.names`'."""
        gate_name, up_name, down_name = (
            f"{prefix}{each}.weight" for each in self.config.shared_modules
        )
        size, hidden, at = (
            self.config.shared_expert_size,
            self.config.hidden_size,
            self.first_column,
        )
        behind = size if gate_name == up_name else 0
        shape = (size + behind, hidden)
        gate, up = self.w13.split([self.width, self.width])
        for name, first, target in ((gate_name, at, gate), (up_name, behind + at, up)):
            yield from weight_part(name, shape, 0, first, target, self.weight_format)
        yield from weight_part(down_name, (hidden, size), 1, at, self.w2, self.weight_format)
        if self.gate is not None:
            yield whole(f"{prefix}{self.config.names.shared_gate}", self.gate)
