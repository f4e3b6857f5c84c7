"""What a step leaves for the host: its tokens and the experts it hit, in one tensor.

Owns the tensor on the device, so that one copy brings all of it, and the pinned copies with the
events around each step. Knows nothing of how steps run.
"""

from __future__ import annotations

import dataclasses

import torch

from switchyard.worker.link import MAX_STEPS_IN_FLIGHT


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostCopy:
    """Where a step's results come to on the host, and when it began and ended."""

    words: torch.Tensor
    started: torch.cuda.Event
    done: torch.cuda.Event


class ResultBuffer:
    """The results of one step at a time; every step writes to the same places.

    Attributes:
        words: int32, the tokens of the rows that draw, then, from `hits_at` on, the hits.
        tokens_S: the front of it, one place a slot.
        hits_L: int32, how many of this rank's experts each sparse layer hit.
    """

    def __init__(self, *, num_slots: int, num_sparse_layers: int, device: torch.device) -> None:
        self.hits_at = num_slots
        self.words = torch.zeros(num_slots + num_sparse_layers, dtype=torch.int32, device=device)
        self.tokens_S = self.words[:num_slots]
        self.hits_L = self.words[num_slots:]
        self.turn = 0
        self.copies: list[HostCopy] = []
        if device.type == "cuda":
            # One more than may fly: a step is also measured from the end of the one before it.
            self.copies = [self._make_copy() for _ in range(MAX_STEPS_IN_FLIGHT + 1)]

    def next_copy(self) -> HostCopy | None:
        """The place for the next step's results; None on a CPU."""
        if not self.copies:
            return None
        self.turn = (self.turn + 1) % len(self.copies)
        return self.copies[self.turn]

    def to_host(self, copy: HostCopy | None) -> torch.Tensor:
        """Start the copy to a place of `next_copy`; it can be read once the step is done."""
        if copy is None:
            return self.words.clone()
        return copy.words.copy_(self.words, non_blocking=True)

    def _make_copy(self) -> HostCopy:
        return HostCopy(
            words=torch.zeros(len(self.words), dtype=torch.int32, pin_memory=True),
            started=torch.cuda.Event(enable_timing=True),
            done=torch.cuda.Event(enable_timing=True),
        )
