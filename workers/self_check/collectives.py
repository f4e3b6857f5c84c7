"""Checks of the exchanges between ranks: small whole numbers, whose sums every type holds.

Owns the numbers and which exchanges a layout has. Knows no kernel. All ranks must call it at the
same time. R rows, N ranks of a group.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import torch
import torch.distributed as dist

from moe.base.collectives import (
    all_gather_rows,
    all_reduce,
    exchange_rows,
    reduce_scatter_rows,
)
from moe.base.parallel import ParallelConfig
from moe.groups import ExpertGroups
from workers.distributed import Groups
from workers.self_check.finding import Finding, count, told

_ROWS = (1, 16, 256)  # libraries have a way for each size


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """One group of ranks, and rows as they exchange them."""

    name: str
    group: dist.ProcessGroup
    rank: int
    width: int
    dtype: torch.dtype
    device: torch.device

    def rows(self, rank: int, num_rows: int) -> torch.Tensor:
        """Of a rank: numbers from -3 to 3."""
        places = torch.arange(num_rows * self.width, device=self.device)
        return (places * (2 * rank + 3) % 7 - 3).to(self.dtype).view(num_rows, self.width)

    def all_rows(self, num_rows: int) -> torch.Tensor:
        """Of all ranks ``[N, R, width]``."""
        return torch.stack([self.rows(rank, num_rows) for rank in range(self.group.size())])

    def _what(self, what: str, num_rows: int) -> str:
        """For people."""
        return f"{what} over the {self.group.size()} ranks of {self.name}, {told(num_rows)}"

    def check_sum(self, num_rows: int) -> Finding:
        """All-reduce."""
        got = all_reduce(self.rows(self.rank, num_rows), self.group)
        return count(self._what("all-reduce", num_rows), got != self.all_rows(num_rows).sum(0))

    def check_gather(self, num_rows: int) -> Finding:
        """All-gather."""
        got = all_gather_rows(self.rows(self.rank, num_rows), self.group)
        return count(
            self._what("all-gather", num_rows), got != self.all_rows(num_rows).flatten(0, 1)
        )

    def check_scatter(self, num_rows: int) -> Finding:
        """Reduce-scatter."""
        size = self.group.size()
        got = reduce_scatter_rows(self.rows(self.rank, size * num_rows), self.group)
        sums = self.all_rows(size * num_rows).sum(0).unflatten(0, (size, num_rows))
        return count(self._what("reduce-scatter", num_rows), got != sums[self.rank])

    def check_exchange(self, num_rows: int) -> Finding:
        """All-to-all; a rank has more rows for one that is farther away, and none for itself."""
        size = self.group.size()
        counts = [num_rows * abs(rank - self.rank) for rank in range(size)]
        got = exchange_rows(self.rows(self.rank, sum(counts)), counts, counts, self.group)
        expected = []
        for rank in range(size):
            theirs = [num_rows * abs(other - rank) for other in range(size)]
            expected.append(self.rows(rank, sum(theirs)).split(theirs)[self.rank])
        return count(self._what("all-to-all", num_rows), got != torch.cat(expected))


def check_collectives(
    groups: Groups,
    expert_groups: ExpertGroups,
    parallel: ParallelConfig,
    *,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[Finding]:
    """What layers of this layout exchange, and the minimum over all ranks that the start takes.

    Args:
        width: of a row.
    """
    if groups.world_size == 1:
        return
    lowest = torch.tensor([groups.minimum(7 + groups.rank)])
    yield count(f"minimum over {groups.world_size} ranks", lowest != 7)
    make = functools.partial(_Group, width=width, dtype=dtype, device=device)
    for num_rows in _ROWS:
        if groups.tp_group is not None:
            tp = make(name="tp", group=groups.tp_group, rank=groups.tp_rank)
            yield tp.check_sum(num_rows)
            yield tp.check_gather(num_rows)
        if expert_groups.ep_group is not None:
            group, rank = expert_groups.ep_group, expert_groups.ep_rank
            ep = make(name="ep", group=group, rank=rank)
            yield from _of_experts(ep, parallel.backend, num_rows)


def _of_experts(ep: _Group, backend: str, num_rows: int) -> Iterator[Finding]:
    if backend == "local_allreduce":
        yield ep.check_sum(num_rows)
    elif backend == "allgather_reducescatter":
        yield ep.check_gather(num_rows)
        yield ep.check_scatter(num_rows)
    else:
        yield ep.check_exchange(num_rows)
