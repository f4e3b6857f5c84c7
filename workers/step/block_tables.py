"""Every slot's blocks, a table for each group of layers.

Owns the tables on the device and their lengths on the host. Knows nothing of what blocks hold. G
groups, S slots, R rows of a step.
"""

from __future__ import annotations

import numpy as np
import torch

from switchyard.worker.v1 import worker_pb2
from workers.rows import int32s
from workers.staging import Staging
from workers.zeros import zeros

_SPARE_WORDS = 1 << 16  # initial size of the staging, which no graph reads
_ALIGNED = 64  # words


class BlockTables:
    """The tables of one replica.

    Attributes:
        groups: of each group int32 ``[S, max_blocks]``, at one address for good.
        lengths_GS: blocks in each table, those that hold what no query sees any more among them.
    """

    def __init__(
        self, *, num_groups: int, num_slots: int, max_blocks: int, device: torch.device
    ) -> None:
        self.max_blocks = max_blocks
        # All in one tensor, so that a step changes them at once.
        self._stride = -(-num_slots * max_blocks // _ALIGNED) * _ALIGNED
        self._all = zeros((num_groups, self._stride), torch.int32, device)
        self.groups = [
            each[: num_slots * max_blocks].view(num_slots, max_blocks) for each in self._all
        ]
        self.lengths_GS = np.zeros((num_groups, num_slots), dtype=np.int64)
        self._changes = Staging(device, _SPARE_WORDS)

    def clear(self, slot: int) -> None:
        """Empty a slot's tables for its next sequence."""
        self.lengths_GS[:, slot] = 0

    def extend(self, step: worker_pb2.StepRequest, slots_R: np.ndarray) -> None:
        """Append the step's new blocks to the tables of its rows.

        Raises:
            ValueError: the columns contradict each other, or a table has no room.
        """
        G = len(self.groups)
        counts = np.array(step.num_new_blocks, dtype=np.int64)
        blocks = int32s(step, "new_blocks")
        if len(counts) != len(slots_R) * G or counts.sum() != len(blocks):
            raise ValueError(
                f"step {step.step_id}: {len(counts)} block counts that sum to {counts.sum()} for "
                f"{len(slots_R)} rows in {G} groups of layers and {len(blocks)} blocks"
            )
        if not len(blocks):
            return
        groups_RG = np.tile(np.arange(G), len(slots_R))
        slots_RG = np.repeat(slots_R.astype(np.int64), G)
        entry = np.repeat(np.arange(len(counts)), counts)
        offsets = np.arange(len(blocks)) - (np.cumsum(counts) - counts)[entry]
        places = self.lengths_GS[groups_RG, slots_RG][entry] + offsets
        if places.max() >= self.max_blocks:
            raise ValueError(
                f"step {step.step_id}: a sequence of more than {self.max_blocks} blocks"
            )
        tables = groups_RG * self._stride + slots_RG * self.max_blocks
        changes = self._changes.copy({"places": tables[entry] + places, "blocks": blocks})
        self._all.view(-1).index_copy_(0, changes["places"], changes["blocks"])
        self.lengths_GS[groups_RG, slots_RG] += counts


def in_groups(step: worker_pb2.StepRequest, num_groups: int) -> worker_pb2.StepRequest:
    """A made-up step whose blocks are those of one group of layers, with as many for each group:
    of block b those from ``b * num_groups`` on, so that no two are the same."""
    if num_groups == 1:
        return step
    counts, blocks = list(step.num_new_blocks), iter(list(step.new_blocks))
    step.num_new_blocks[:] = [count for count in counts for _ in range(num_groups)]
    step.ClearField("new_blocks")
    for count in counts:
        own = [next(blocks) * num_groups for _ in range(count)]
        for group in range(num_groups):
            step.new_blocks.extend(block + group for block in own)
    return step
