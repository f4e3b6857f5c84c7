"""The collectives by name; what each does to a group of one.

Does not start processes or make groups.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

# torch 2.13 renamed both and warns at each use of the old names, which are all that 2.11 has.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def all_reduce(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The sum over the group, in place; nothing to do for a group of one or an empty tensor."""
    if group is not None and tensor.numel():
        dist.all_reduce(tensor, group=group)
    return tensor


def all_gather_rows(rows: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[S,…] of every rank, in rank order: [N·S,…]. S is the same on all ranks."""
    out = rows.new_empty(group.size() * rows.shape[0], *rows.shape[1:])
    all_gather_into(out, rows.contiguous(), group)
    return out


def all_gather_into(out: torch.Tensor, rows: torch.Tensor, group: dist.ProcessGroup) -> None:
    """As `all_gather_rows`, into `out`; both contiguous."""
    _all_gather(out, rows, group=group)


def reduce_scatter_rows(rows: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[N·S,…] summed over the ranks; this rank's [S,…] of it."""
    out = rows.new_empty(rows.shape[0] // group.size(), *rows.shape[1:])
    _reduce_scatter(out, rows.contiguous(), group=group)
    return out


def exchange_rows(
    rows: torch.Tensor, send_counts: list[int], recv_counts: list[int], group: dist.ProcessGroup
) -> torch.Tensor:
    """`rows` is sent in runs of `send_counts`, one per rank; the runs received, in rank order."""
    out = rows.new_empty(sum(recv_counts), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), recv_counts, send_counts, group=group)
    return out
