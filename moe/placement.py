"""Which rank holds which expert.

Owns the contiguous placement and its maps. Does not know weights, tokens or collectives.
E experts, N ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPlacement:
    """Contiguous blocks of experts; the first E mod N ranks hold one more. E < N is fine."""

    num_experts: int
    num_ranks: int
    rank: int

    def __post_init__(self) -> None:
        if self.num_experts < 1 or self.num_ranks < 1 or not 0 <= self.rank < self.num_ranks:
            raise ValueError(
                f"no placement of {self.num_experts} experts for rank {self.rank} "
                f"of {self.num_ranks}: experts and ranks must be at least 1, rank within them"
            )

    @property
    def start(self) -> int:
        """Global id of this rank's first expert."""
        return self._start_of(self.rank)

    @property
    def stop(self) -> int:
        """One past the global id of this rank's last expert."""
        return self._start_of(self.rank + 1)

    @property
    def num_local(self) -> int:
        """Experts on this rank, possibly 0."""
        return self.stop - self.start

    def expert_map(self, device: torch.device | str) -> torch.Tensor:
        """int32 [E]: local index of an expert, −1 where another rank holds it."""
        index = torch.full((self.num_experts,), -1, dtype=torch.int32)
        index[self.start : self.stop] = torch.arange(self.num_local, dtype=torch.int32)
        return index.to(device)

    def owners(self, device: torch.device | str) -> torch.Tensor:
        """int64 [E]: the rank that holds each expert."""
        starts = torch.tensor([self._start_of(rank) for rank in range(self.num_ranks + 1)])
        return torch.repeat_interleave(torch.arange(self.num_ranks), starts.diff()).to(device)

    def _start_of(self, rank: int) -> int:
        each, extra = divmod(self.num_experts, self.num_ranks)
        return rank * each + min(rank, extra)
