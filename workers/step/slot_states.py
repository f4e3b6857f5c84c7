"""Which states the rows of a step begin from, write and keep.

Owns what a slot's next row begins from. Knows nothing of layers or devices. States of slots come
first, kept ones behind.
"""

from __future__ import annotations

import numpy as np

from switchyard.worker.v1 import worker_pb2
from workers.linear_attention.delta_rule import CHUNK
from workers.linear_attention.plan import StateRows
from workers.rows import StepRows


class SlotStates:
    """
    Args:
        num_kept: states beside those of slots.
    """

    def __init__(self, *, num_slots: int, num_kept: int) -> None:
        self.num_slots, self.num_kept = num_slots, num_kept
        # Of a slot's first row, the kept state it begins from; -1: its own, or none.
        self._first = np.full(num_slots, -1, dtype=np.int32)

    def enter(self, new: worker_pb2.NewSequence) -> None:
        """A sequence takes a slot.

        Raises:
            ValueError: there is no such state.
        """
        if new.from_state > self.num_kept:
            raise ValueError(f"state {new.from_state - 1} is none of {self.num_kept} kept ones")
        kept = self.num_slots + new.from_state - 1
        self._first[new.slot] = kept if new.from_state else -1

    def rows(self, step: worker_pb2.StepRequest, rows: StepRows) -> StateRows:
        """Of the rows of a step, whose slots have been checked.

        Raises:
            ValueError: what is to be kept contradicts itself, or the rows.
        """
        first = self._first[rows.slots]
        own = np.where(rows.positions > 0, rows.slots, -1)
        self._first[rows.slots] = -1
        keep_positions, keep_states = np.zeros_like(rows.slots), np.full_like(rows.slots, -1)
        keep = step.keep
        columns = (keep.rows, keep.positions, keep.states)
        kept_rows, positions, states = (np.array(each, dtype=np.int64) for each in columns)
        if not len(kept_rows) == len(positions) == len(states):
            raise ValueError(
                f"step {step.step_id}: {len(kept_rows)} rows keep {len(states)} states"
            )
        if len(kept_rows) and (
            kept_rows.max() >= len(rows.slots) or states.max() >= self.num_kept
            or (np.diff(kept_rows) <= 0).any() or (positions % CHUNK).any()
            or (positions <= rows.positions[kept_rows]).any()
            or (positions > rows.lengths[kept_rows]).any()
        ):  # fmt: skip
            raise ValueError(
                f"step {step.step_id}: rows {kept_rows.tolist()} keep states {states.tolist()} "
                f"behind {positions.tolist()}"
            )
        keep_positions[kept_rows] = positions
        keep_states[kept_rows] = self.num_slots + states
        return StateRows(
            sources=np.where(first >= 0, first, own).astype(np.int32),
            targets=rows.slots,
            keep_positions=keep_positions,
            keep_states=keep_states,
        )
