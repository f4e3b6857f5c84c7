"""Linear layers split over the tensor-parallel group, and where their rows stand in a checkpoint.

Shapes: T tokens, I inputs, O outputs of this rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from moe.checkpoint import CheckpointSlice
from workers.distributed import Groups


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one checkpoint tensor that this rank holds: ``[start, stop)`` of ``total``."""

    total: int
    start: int
    stop: int

    @classmethod
    def shard(cls, total: int, rank: int, size: int) -> Rows:
        """The rank's even share of ``total`` rows, which ``size`` must divide."""
        if total % size:
            raise ValueError(f"{total} rows do not divide over {size} ranks")
        share = total // size
        return cls(total, rank * share, (rank + 1) * share)


class ColumnParallelLinear(nn.Module):
    """``y[T, O] = x[T, I] Wᵀ``; W stacks this rank's rows of one or more checkpoint tensors.

    Args:
        parts: for each tensor's name (without ``.weight``), the rows this rank holds, in order.
    """

    def __init__(
        self, in_features: int, parts: dict[str, Rows], dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.parts = parts
        self.splits = [rows.stop - rows.start for rows in parts.values()]
        self.weight = nn.Parameter(
            torch.empty(sum(self.splits), in_features, dtype=dtype, device=device),
            requires_grad=False,
        )

    def forward(self, x_TI: torch.Tensor) -> torch.Tensor:
        return F.linear(x_TI, self.weight)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """This layer's tensors below ``prefix``."""
        targets = self.weight.split(self.splits)
        for (name, rows), target in zip(self.parts.items(), targets, strict=True):
            yield CheckpointSlice(
                name=f"{prefix}{name}.weight",
                shape=(rows.total, self.weight.shape[1]),
                index=(slice(rows.start, rows.stop), slice(None)),
                target=target,
            )


class RowParallelLinear(nn.Module):
    """``y[T, O] = all_reduce(x[T, I / tp] Wᵀ)``; W holds this rank's columns."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: Groups,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.columns = Rows.shard(in_features, groups.tp_rank, groups.tp_size)
        local = self.columns.stop - self.columns.start
        self.weight = nn.Parameter(
            torch.empty(out_features, local, dtype=dtype, device=device), requires_grad=False
        )

    def forward(self, x_TI: torch.Tensor) -> torch.Tensor:
        return self.groups.all_reduce(F.linear(x_TI, self.weight))

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """This layer's tensor; ``prefix`` ends with the layer's own name and a dot."""
        yield CheckpointSlice(
            name=f"{prefix}weight",
            shape=(self.weight.shape[0], self.columns.total),
            index=(slice(None), slice(self.columns.start, self.columns.stop)),
            target=self.weight,
        )
