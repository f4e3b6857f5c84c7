"""Sampling parameters of every slot, on the host.

Owns their columns. Knows nothing of steps or devices.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from switchyard.worker.v1 import worker_pb2
from workers.sampling.options import SamplingOptions

# Rows of the arrays. Each becomes a column of its own, whose address on a device is always aligned.
_FLOATS = ("temperature", "top_p", "min_p")
_INTS = ("top_k", "seed", "sample_index")


@dataclasses.dataclass(frozen=True, slots=True)
class _Suppression:
    """Tokens, int64, that a slot may not draw before a position."""

    token_ids: np.ndarray
    until: int


class SlotParams:
    """Sampling parameters by slot, columns on the host; the last column is padding's.

    Attributes:
        options: of the slots whose sequence has some; `has_options` marks these.
    """

    def __init__(self, num_slots: int) -> None:
        self.floats = np.zeros((len(_FLOATS), num_slots + 1), dtype=np.float32)
        self.ints = np.zeros((len(_INTS), num_slots + 1), dtype=np.int64)
        self.suppressions: dict[int, _Suppression] = {}
        self.options: dict[int, SamplingOptions] = {}
        self.has_options = np.zeros(num_slots + 1, dtype=np.bool_)

    def set(self, new: worker_pb2.NewSequence) -> None:
        """Take in a sequence; raises ValueError when its fields contradict each other."""
        if new.slot >= len(self.has_options) - 1:
            raise ValueError(f"slot {new.slot}: there are {len(self.has_options) - 1}")
        seed = np.uint64(new.seed).astype(np.int64)
        self.floats[:, new.slot] = (new.temperature, new.top_p, new.min_p)
        self.ints[:, new.slot] = (new.top_k, seed, new.sample_index)
        self.suppressions.pop(new.slot, None)
        if new.suppressed_token_ids:
            self.suppressions[new.slot] = _Suppression(
                np.array(new.suppressed_token_ids, dtype=np.int64), new.suppress_until
            )
        options = SamplingOptions.of(new)
        self.has_options[new.slot] = options is not None
        self.options.pop(new.slot, None)
        if options is not None:
            self.options[new.slot] = options

    def columns(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        """fp32 and int64 columns by name; slot -1 is padding."""
        floats = zip(_FLOATS, self.floats[:, slots], strict=True)
        return {**dict(floats), **dict(zip(_INTS, self.ints[:, slots], strict=True))}

    def kinds(self, slots: np.ndarray) -> tuple[bool, bool]:
        """Whether any row is random, and whether any such row has a filter."""
        temperature, top_p, min_p = self.floats[:, slots]
        random = temperature > 0
        filtered = (top_p < 1) | (min_p > 0) | (self.ints[0, slots] > 0)
        return bool(random.any()), bool((random & filtered).any())

    def suppressed(self, slots: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of draw row and token id that may not be drawn, int64 ``[P]`` each."""
        suppressions = self.suppressions
        rows, ids = [], [np.empty(0, dtype=np.int64)]
        for row, slot in enumerate(slots.tolist() if suppressions else ()):
            if slot in suppressions and positions[row] < suppressions[slot].until:
                rows.append(row)
                ids.append(suppressions[slot].token_ids)
        repeats = [len(of_row) for of_row in ids[1:]]
        return np.repeat(np.array(rows, dtype=np.int64), repeats), np.concatenate(ids)
