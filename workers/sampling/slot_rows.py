"""Rows of device memory for the few slots that need one.

Owns which slot has which row, and growth. Does not know what rows hold.
"""

from __future__ import annotations

import numpy as np
import torch

_FIRST_ROWS = 4


class SlotRows:
    """An int32 row of `width` for each slot that has taken one, until it is given back.

    Attributes:
        values_RW: all rows; moves when it grows, to twice its rows, at most one per slot.
    """

    def __init__(self, *, width: int, num_slots: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.values_RW = torch.zeros(0, width, dtype=torch.int32, device=device)
        self._row_of: dict[int, int] = {}
        self._free: list[int] = []

    def __contains__(self, slot: int) -> bool:
        return slot in self._row_of

    def take(self, slots: list[int]) -> np.ndarray:
        """Rows of the slots, int64. A slot that had none gets one, of undefined values."""
        missing = [slot for slot in slots if slot not in self._row_of]
        if len(missing) > len(self._free):
            self._grow(len(missing) - len(self._free))
        for slot in missing:
            self._row_of[slot] = self._free.pop()
        return np.array([self._row_of[slot] for slot in slots], dtype=np.int64)

    def give_back(self, slot: int) -> None:
        """The slot's row, if it has one, is free."""
        row = self._row_of.pop(slot, None)
        if row is not None:
            self._free.append(row)

    def _grow(self, num_rows: int) -> None:
        num_held, width = self.values_RW.shape
        size = min(self.num_slots, max(_FIRST_ROWS, 2 * num_held, num_held + num_rows))
        assert size >= num_held + num_rows, "more rows than slots"
        grown_RW = self.values_RW.new_zeros(size, width)
        grown_RW[:num_held].copy_(self.values_RW)
        self.values_RW = grown_RW
        self._free += range(size - 1, num_held - 1, -1)
