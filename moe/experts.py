"""The packed weights of the routed experts a rank holds.

Owns the parameters, how a checkpoint fills them in place, and the map from global ids to them.
Does not know routing, collectives, or how a runner computes. E experts, H hidden, I expert width;
a rank holds E_local whole experts, or an I_part-wide slice of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice, turned
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.quantize import empty_weight
from moe.base.quantized import Quantized
from moe.base.weight import Weight, held_weight
from moe.base.weight_format import WeightFormat
from moe.base.weight_slices import (
    Index,
    has_scales,
    scales_slice,
    values_slice,
    weight_slices,
)
from moe.config import MoEConfig
from moe.kernels.eight_bits import eight_bit_gemms
from moe.kernels.experts import takes_choice
from moe.placement import ExpertPlacement
from moe.routes import TopK
from moe.runner import RUNNERS

Part = tuple[str, tuple[int, ...], Index | None, Weight | None]


class FusedMoeExperts(nn.Module):
    """w13 [E_local, 2·I_part, H] with gate rows first, and w2 [E_local, H, I_part].

    `placement` says which experts; `slice_rank` of `num_slices` says which I_part columns of each;
    `weight_format`, how they stand where they have fewer bits than `dtype`.
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
        weight_format: WeightFormat | None = None,
    ) -> None:
        super().__init__()
        self.weight_format = weight_format
        self.context = context
        self.config = config
        self.placement = placement
        self.width = config.intermediate_size // num_slices
        assert self.width * num_slices == config.intermediate_size
        self.first_column = slice_rank * self.width
        self.run = RUNNERS[runner]
        count, hidden = placement.num_local, config.hidden_size
        w13 = empty_weight(
            (count, 2 * self.width, hidden), weight_format, dtype=dtype, device=device
        )
        w2 = empty_weight((count, hidden, self.width), weight_format, dtype=dtype, device=device)
        self.w13 = held_weight(self, "w13", w13)
        self.w2 = held_weight(self, "w2", w2)
        every = count == config.num_experts
        expert_map = None if every else placement.expert_map(device)
        self.register_buffer("expert_map", expert_map, persistent=False)

    def forward(
        self, hidden_TH: torch.Tensor, topk: TopK, quantized_TH: Quantized | None = None
    ) -> DeferredSum:
        """What this rank's experts add for `topk`, whose ids are global: a sum to [T,H].

        `quantized_TH` is `hidden_TH` in eight bits, if anyone made it.
        """
        weights = self.w13, self.w2
        return self.run(hidden_TH, topk, *weights, self.expert_map, self.context, quantized_TH)

    def takes_quantized(self, num_tokens: int) -> bool:
        """Whether so many tokens are computed in eight bits."""
        if self.context is None or num_tokens == 0 or self.w13.shape[0] == 0:
            return False
        top_k, weights = self.config.num_experts_per_tok, (self.w13, self.w2)
        gemms = eight_bit_gemms(num_tokens, top_k, *weights, self.expert_map, self.context)
        return gemms is not None

    def chooses(self, num_tokens: int) -> bool:
        """Whether the kernels for so many tokens take a `Choice` of experts in place of ids."""
        if self.context is None or self.run is not RUNNERS["fused"] or self.w13.shape[0] == 0:
            return False
        top_k = self.config.num_experts_per_tok
        return takes_choice(num_tokens, top_k, self.w13, self.w2, self.context)

    def checkpoint_slices(
        self, prefix: str, packed: bool = False, packed_scales: bool = False
    ) -> Iterator[CheckpointSlice]:
        """`prefix` is that of the block; names are `MoEConfig.names`'.

        Per expert (as on the Hub, and as save_pretrained writes them): gate and up [I,H], down
        [H,I]. Packed (transformers 5's own modules): gate and up [E,2I,H], down [E,H,I]; or turned,
        without scales (Qwen3-VL-MoE on the Hub): [E,H,2I], [E,I,H]. Scales stand as the values do,
        or packed beside values per expert (save_pretrained of transformers 5).
        """
        packed = packed or self.config.names.is_packed
        if packed and self.config.names.is_turned:
            for part in self._parts(prefix, packed):
                yield turned(values_slice(*part, self.weight_format))
            return
        if not packed_scales or packed or not has_scales(self.weight_format):
            for part in self._parts(prefix, packed):
                yield from weight_slices(*part, self.weight_format)
            return
        for part in self._parts(prefix, packed=False):
            yield values_slice(*part, self.weight_format)
        for part in self._parts(prefix, packed=True):
            yield scales_slice(*part, self.weight_format)

    def _parts(self, prefix: str, packed: bool) -> Iterator[Part]:
        """Of each tensor its name, its shape, and what this rank reads into which view."""
        if packed:
            yield from self._packed_parts(prefix)
            return
        for expert in range(self.config.num_experts):
            modules = self.config.names.expert_modules(expert)
            names = [f"{prefix}{module}.weight" for module in modules]
            yield from self._expert_parts(names, expert - self.placement.start)

    def _expert_parts(self, names: list[str], local: int) -> Iterator[Part]:
        width, hidden = self.config.intermediate_size, self.config.hidden_size
        shapes = [(width, hidden), (width, hidden), (hidden, width)]
        if not 0 <= local < self.placement.num_local:
            for name, shape in zip(names, shapes, strict=True):
                yield name, shape, None, None
            return
        columns, whole = slice(self.first_column, self.first_column + self.width), slice(0, hidden)
        gate, up = self.w13[local].split([self.width, self.width])
        for name, shape, index, target in zip(
            names,
            shapes,
            ((columns, whole), (columns, whole), (whole, columns)),
            (gate, up, self.w2[local]),
            strict=True,
        ):
            yield name, shape, index, target

    def _packed_parts(self, prefix: str) -> Iterator[Part]:
        config = self.config
        experts, width, hidden = config.num_experts, config.intermediate_size, config.hidden_size
        w13_shape, w2_shape = (experts, 2 * width, hidden), (experts, hidden, width)
        names = [f"{prefix}{name}" for name in config.names.packed]
        if not self.placement.num_local:
            yield names[0], w13_shape, None, None
            yield names[1], w2_shape, None, None
            return
        local = slice(self.placement.start, self.placement.stop)
        columns, whole = slice(self.first_column, self.first_column + self.width), slice(0, hidden)
        gate, up = self.w13.split([self.width, self.width])
        for first_row, target in ((0, gate), (width, up)):
            rows = slice(first_row + columns.start, first_row + columns.stop)
            yield names[0], w13_shape, (local, rows, whole), target
        yield names[1], w2_shape, (local, whole, columns), self.w2
