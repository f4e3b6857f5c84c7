"""The newest frontend that the ranks of this machine have seen, kept over the groups.

Owns memory that the launcher shares with all its forks. Knows nothing of streams.
"""

from __future__ import annotations

import mmap
import struct

_EPOCH = struct.Struct("=Q")


class Epochs:
    """One epoch a rank: a process writes its own, and all read the newest.

    Args:
        num_ranks: of this machine.
    """

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._memory = mmap.mmap(-1, num_ranks * _EPOCH.size)

    def saw(self, local_rank: int, epoch: int) -> None:
        """Note the epoch that a rank of this machine serves."""
        _EPOCH.pack_into(self._memory, local_rank * _EPOCH.size, epoch)

    def newest(self) -> int:
        """The newest epoch of all ranks and groups so far; 0: none."""
        return max(int(epoch) for (epoch,) in _EPOCH.iter_unpack(self._memory[:]))
