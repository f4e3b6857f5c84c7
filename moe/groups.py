"""The process groups a sparse layer talks over, and this rank's place in them.

Owns `ExpertGroups`. Does not start processes or make groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertGroups:
    """Groups and ranks; a group of size 1 is None. Global rank = dp_rank · tp_size + tp_rank.

    `ep` spans all dp × tp ranks, in that order, where experts are spread.
    """

    tp_group: dist.ProcessGroup | None = None
    ep_group: dist.ProcessGroup | None = None
    tp_rank: int = 0
    tp_size: int = 1
    dp_rank: int = 0
    dp_size: int = 1
    ep_rank: int = 0
    ep_size: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "dp", "ep"):
            rank, size = getattr(self, f"{name}_rank"), getattr(self, f"{name}_size")
            assert 0 <= rank < size, f"{name} rank {rank} of {size}"
        assert (self.tp_group is None) == (self.tp_size == 1), "tp_group"
        assert (self.ep_group is None) == (self.ep_size == 1), "ep_group"
        assert self.ep_size in (1, self.tp_size * self.dp_size), "ep_size"
        if self.ep_size > 1:
            assert self.ep_rank == self.dp_rank * self.tp_size + self.tp_rank, "ep_rank"
