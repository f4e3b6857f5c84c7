"""Process groups of a rank and the collectives attention and dense layers need.

Owns torch.distributed's set-up and the mapping rank = dp_rank * tp + tp_rank. Knows nothing of
experts beyond handing their groups to the moe package.
"""

from __future__ import annotations

import dataclasses
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from moe.base.collectives import all_gather_into, all_gather_rows, all_reduce
from moe.base.parallel import ParallelConfig
from moe.groups import ExpertGroups

# A collective that hangs longer ends the rank.
_TIMEOUT = timedelta(minutes=10)


def ranks_here() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """This rank's place and its groups; a group of one rank is None."""

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    dp_rank: int
    dp_size: int
    tp_group: dist.ProcessGroup | None
    world_group: dist.ProcessGroup | None

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor-parallel group, in place."""
        return all_reduce(x, self.tp_group)

    def gather_columns(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, C]`` of every tensor-parallel rank, joined to ``[N, tp * C]``."""
        if self.tp_group is None:
            return x
        shards = all_gather_rows(x, self.tp_group)
        return shards.view(self.tp_size, *x.shape).transpose(0, 1).reshape(x.shape[0], -1)

    def gather_rows(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """``[N, C]`` of every tensor-parallel rank, one below the other, into ``[tp * N, C]``."""
        assert self.tp_group is not None
        all_gather_into(out, x, self.tp_group)

    def minimum(self, value: int) -> int:
        """The smallest value any rank of the world has."""
        if self.world_group is None:
            return value
        on_cuda = dist.get_backend(self.world_group) == "nccl"
        box = torch.tensor([value], dtype=torch.int64, device="cuda" if on_cuda else "cpu")
        dist.all_reduce(box, op=dist.ReduceOp.MIN, group=self.world_group)
        return int(box.item())


SINGLE = Groups(
    rank=0,
    world_size=1,
    tp_rank=0,
    tp_size=1,
    dp_rank=0,
    dp_size=1,
    tp_group=None,
    world_group=None,
)


def join(parallel: ParallelConfig, device: torch.device) -> Groups:
    """Join the group that torchrun's environment describes.

    Raises:
        ValueError: WORLD_SIZE is not tp * dp.
    """
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    tp, dp = parallel.tp, parallel.dp
    if world_size != tp * dp:
        raise ValueError(
            f"{world_size} ranks were started, but --tp {tp} --dp {dp} needs {tp * dp}"
        )
    if world_size == 1:
        return SINGLE
    on_cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_cuda else "gloo", timeout=_TIMEOUT, device_id=device if on_cuda else None
    )
    tp_group = None
    for replica in range(dp):
        # Every rank must make every group.
        group = dist.new_group(range(replica * tp, (replica + 1) * tp))
        if tp > 1 and rank // tp == replica:
            tp_group = group
    return Groups(
        rank=rank,
        world_size=world_size,
        tp_rank=rank % tp,
        tp_size=tp,
        dp_rank=rank // tp,
        dp_size=dp,
        tp_group=tp_group,
        world_group=dist.group.WORLD,
    )


def expert_groups(groups: Groups, parallel: ParallelConfig) -> ExpertGroups:
    """The groups the moe package works with: experts are spread over the world, or over none."""
    spread = parallel.ep > 1
    return ExpertGroups(
        tp_group=groups.tp_group,
        tp_rank=groups.tp_rank,
        tp_size=groups.tp_size,
        dp_rank=groups.dp_rank,
        dp_size=groups.dp_size,
        ep_group=groups.world_group if spread else None,
        ep_rank=groups.rank if spread else 0,
        ep_size=parallel.ep,
    )
