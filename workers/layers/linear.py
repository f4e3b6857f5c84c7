"""Linear layers split over the tensor-parallel group, and where their rows stand in a checkpoint.

Shapes: T tokens, I inputs, O outputs of this rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice, part, whole
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.gemm import linear_parts, rows_for, takes_quantized
from moe.base.picked_rows import pick_rows
from moe.base.quantize import empty_weight
from moe.base.quantized import Quantized
from moe.base.weight import held_weight
from moe.base.weight_format import WeightFormat
from moe.base.weight_slices import weight_part
from workers.distributed import Groups


@dataclasses.dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows of one checkpoint tensor that this rank holds: ``[start, stop)`` of ``total``."""

    total: int
    start: int
    stop: int

    @classmethod
    def shard(cls, total: int, rank: int, size: int) -> ShardRows:
        """The rank's even share of ``total`` rows, which ``size`` must divide."""
        if total % size:
            raise ValueError(f"{total} rows do not divide over {size} ranks")
        share = total // size
        return cls(total, rank * share, (rank + 1) * share)


class ColumnParallelLinear(nn.Module):
    """``y[T, O] = x[T, I] Wᵀ``; W stacks this rank's rows of one or more checkpoint tensors.

    The result comes as partial sums ``[S, T, O]``; without a context there is one. A bias is left
    to whoever sums them, who rounds once.

    Args:
        shards: for each tensor's name (without ``.weight``), the rows this rank holds, in order; a
            name may come up several times.
        weight_format: of all the weights, where they have fewer bits than ``dtype``.
        parts: name of the workspace that takes the sums, which the next layer of that name reuses.
    """

    def __init__(
        self,
        in_features: int,
        shards: dict[str, ShardRows] | Sequence[tuple[str, ShardRows]],
        dtype: torch.dtype,
        device: torch.device,
        context: KernelContext | None = None,
        weight_format: WeightFormat | None = None,
        *,
        has_bias: bool = False,
        parts: str = "column_parallel",
    ) -> None:
        super().__init__()
        self.weight_format = weight_format
        self.context = context
        self.parts = parts
        self.shards = list(shards.items()) if isinstance(shards, dict) else shards
        self.splits = [rows.stop - rows.start for _, rows in self.shards]
        shape = (sum(self.splits), in_features)
        weight = empty_weight(shape, weight_format, dtype=dtype, device=device)
        self.weight = held_weight(self, "weight", weight)
        self.bias: nn.Parameter | None = None
        if has_bias:
            bias = torch.empty(shape[0], dtype=dtype, device=device)
            self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x_TI: torch.Tensor, quantized_TI: Quantized | None = None) -> torch.Tensor:
        """``quantized_TI`` is ``x_TI`` in eight bits, if anyone made it."""
        if self.context is None:
            return F.linear(x_TI, self.weight.plain(x_TI.dtype)).unsqueeze(0)
        return linear_parts(x_TI, self.weight, self.context, self.parts, quantized_MK=quantized_TI)

    def takes_quantized(self, num_tokens: int) -> bool:
        """Whether so many tokens are multiplied in eight bits."""
        return self.context is not None and takes_quantized(num_tokens, self.weight, self.context)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """This layer's tensors below ``prefix``."""
        targets = self.weight.split(self.splits)
        for (name, rows), target in zip(self.shards, targets, strict=True):
            shape = (rows.total, self.weight.shape[1])
            weight = f"{prefix}{name}.weight"
            yield from weight_part(weight, shape, 0, rows.start, target, self.weight_format)
        if self.bias is not None:
            biases = self.bias.split(self.splits)
            for (name, rows), target in zip(self.shards, biases, strict=True):
                yield part(f"{prefix}{name}.bias", (rows.total,), 0, rows.start, target)


class RowParallelLinear(nn.Module):
    """``y[T, O] = all_reduce(x[T, I / tp] Wᵀ) + b``; W holds this rank's columns, in
    ``weight_format`` where they have fewer bits than ``dtype``; b, if any, is whole."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: Groups,
        dtype: torch.dtype,
        device: torch.device,
        context: KernelContext | None = None,
        weight_format: WeightFormat | None = None,
        *,
        has_bias: bool = False,
    ) -> None:
        super().__init__()
        self.weight_format = weight_format
        self.groups = groups
        self.context = context
        self.columns = ShardRows.shard(in_features, groups.tp_rank, groups.tp_size)
        local = self.columns.stop - self.columns.start
        weight = empty_weight((out_features, local), weight_format, dtype=dtype, device=device)
        self.weight = held_weight(self, "weight", weight)
        self.bias: nn.Parameter | None = None
        if has_bias:
            bias = torch.empty(out_features, dtype=dtype, device=device)
            self.bias = nn.Parameter(bias, requires_grad=False)

    def rows(self, num_tokens: int, name: str) -> torch.Tensor | Quantized:
        """Workspace of that name for an input, in the form that the layer's kernel takes."""
        assert self.context is not None
        return rows_for(self.weight, num_tokens, self.context, name)

    def forward(
        self, x_TI: torch.Tensor | Quantized, picked_R: torch.Tensor | None = None
    ) -> DeferredSum:
        """The bias is a part of its own, which the next norm adds last.

        Args:
            picked_R: indices of the rows that are wanted, int32; None: all are.
        """
        if picked_R is not None:
            assert isinstance(x_TI, torch.Tensor)
            x_TI = pick_rows(x_TI, picked_R, self.context, "picked_inputs")
        update = self._product(x_TI)
        if self.bias is None:
            return update
        rows_T1O = self.bias.expand(len(update.parts), 1, -1)
        return update.plus(DeferredSum(rows_T1O))

    def _product(self, x_TI: torch.Tensor | Quantized) -> DeferredSum:
        if self.context is None:
            assert isinstance(x_TI, torch.Tensor)
            out_TO = F.linear(x_TI, self.weight.plain(x_TI.dtype))
            return DeferredSum.of(self.groups.all_reduce(out_TO))
        partials_STO = linear_parts(x_TI, self.weight, self.context, "row_parallel")
        update = DeferredSum(partials_STO.transpose(0, 1))
        if self.groups.tp_size == 1:
            return update
        total_TO = update.total(self.context.dtype, self.context)
        return DeferredSum.of(self.groups.all_reduce(total_TO))

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """This layer's tensor; ``prefix`` ends with the layer's own name and a dot."""
        shape = (self.weight.shape[0], self.columns.total)
        weight = f"{prefix}weight"
        yield from weight_part(
            weight, shape, 1, self.columns.start, self.weight, self.weight_format
        )
        if self.bias is not None:
            yield whole(f"{prefix}bias", self.bias)
