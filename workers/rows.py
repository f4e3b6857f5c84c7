"""The rows of a StepRequest as host columns, checked.

Knows nothing of devices, blocks or sampling. S rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from switchyard.worker.v1 import worker_pb2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """One entry a row, decodes first.

    Attributes:
        slots: int32; -1 is padding.
        positions: of the row's first token in its sequence, int32.
        num_tokens: int32.
        first_token: where the row's tokens begin in the step, int32.
        draws: whether a token is drawn after the row's last one.
        lengths: context after this step, int32; 0 for padding.
    """

    slots: np.ndarray
    positions: np.ndarray
    num_tokens: np.ndarray
    first_token: np.ndarray
    draws: np.ndarray
    lengths: np.ndarray

    @classmethod
    def from_step(cls, step: worker_pb2.StepRequest) -> StepRows:
        """Raises ValueError when the columns contradict each other."""
        slots = int32s(step, "slots")
        decodes = step.num_decodes
        num_tokens = np.ones(len(slots), dtype=np.int32)
        draws = np.ones(len(slots), dtype=bool)
        if len(step.num_tokens) != len(slots) - decodes or len(step.draws) != len(slots) - decodes:
            raise ValueError(
                f"step {step.step_id}: {len(slots)} rows, {decodes} decodes, but "
                f"{len(step.num_tokens)} token counts and {len(step.draws)} draw marks"
            )
        if decodes < len(slots):
            num_tokens[decodes:] = int32s(step, "num_tokens")
            draws[decodes:] = np.array(step.draws, dtype=bool)
        if not num_tokens.all() or num_tokens.sum() != decodes + len(step.token_ids):
            raise ValueError(
                f"step {step.step_id}: {len(step.token_ids)} token ids, its rows ask for "
                f"{num_tokens.sum() - decodes}"
            )
        positions = int32s(step, "positions")
        if len(positions) != len(slots):
            raise ValueError(f"step {step.step_id}: {len(positions)} positions, {len(slots)} rows")
        return cls(
            slots=slots,
            positions=positions,
            num_tokens=num_tokens,
            first_token=np.cumsum(num_tokens, dtype=np.int32) - num_tokens,
            draws=draws,
            lengths=positions + num_tokens,
        )

    def check_slots(self, num_slots: int) -> None:
        """Raise ValueError unless each row has a slot of its own."""
        if len(self.slots) and (self.slots.max() >= num_slots or np.bincount(self.slots).max() > 1):
            raise ValueError(f"slots {self.slots.tolist()}: each row has its own, of {num_slots}")

    def check_room(self, tokens_S: np.ndarray) -> None:
        """Raise ValueError when a row writes behind its table, which holds ``tokens_S`` by slot."""
        # In int64, which tokens_S has: a position near 2**31 has no int32 length.
        too_long = np.flatnonzero(self.num_tokens - tokens_S[self.slots] + self.positions > 0)
        if len(too_long):
            row = too_long[0]
            slot = self.slots[row]
            raise ValueError(
                f"slot {slot}: {self.num_tokens[row]} tokens from {self.positions[row]} on, "
                f"its blocks hold {tokens_S[slot]}"
            )

    def padded(self, num_rows: int) -> StepRows:
        """With rows of no sequence behind, each of one token; all rows must be decodes."""
        missing = num_rows - len(self.slots)
        assert missing >= 0
        zeros = np.zeros(missing, dtype=np.int32)
        return StepRows(
            slots=np.concatenate((self.slots, zeros - 1)),
            positions=np.concatenate((self.positions, zeros)),
            num_tokens=np.ones(num_rows, dtype=np.int32),
            first_token=np.arange(num_rows, dtype=np.int32),
            draws=np.ones(num_rows, dtype=bool),
            lengths=np.concatenate((self.lengths, zeros)),
        )


def int32s(step: worker_pb2.StepRequest, column: str) -> np.ndarray:
    """A column of a step; raises ValueError for what an int32 does not hold."""
    values = np.array(getattr(step, column), dtype=np.uint32).view(np.int32)
    if len(values) and values.min() < 0:
        raise ValueError(f"step {step.step_id}: {column} holds a number of 2**31 or more")
    return values
