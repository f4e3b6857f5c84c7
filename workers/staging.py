"""Columns of numbers copied from the host to the device, in one copy a step.

Owns the pinned memory, its reuse, and where a column lies. Knows nothing of what columns mean.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from switchyard.worker.link import MAX_STEPS_IN_FLIGHT

_ALIGN_WORDS = 4  # 16 bytes: kernels compiled for aligned columns stay right for all steps
_TORCH = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}
_KEPT_LAYOUTS = 256

Layout = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]


class _Places(NamedTuple):
    """Where columns of a layout lie, and what the device sees there.

    Attributes:
        words: first word and word behind the last of each column.
        total: words of all.
        views: of the buffer, by name.
    """

    words: list[tuple[int, int]]
    total: int
    views: dict[str, torch.Tensor]


class Staging:
    """A buffer on the device and the pinned ones it is filled from.

    Columns of the same sizes in the same order lie at the same addresses, so that a CUDA graph may
    read them once the buffer is frozen; until then it grows. Nothing is copied for a CPU.
    """

    def __init__(self, device: torch.device, num_words: int) -> None:
        self.device = device
        self.on_cuda = device.type == "cuda"
        self.turn = 0
        self.frozen = False
        self.pinned: list[torch.Tensor] = []
        self._places: dict[Layout, _Places] = {}
        if self.on_cuda:
            self.copied = [torch.cuda.Event() for _ in range(MAX_STEPS_IN_FLIGHT)]
            self._allocate(num_words)

    def copy(self, columns: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """The columns (int32, int64 or float32) on the device, until the next call's copy runs."""
        if not self.on_cuda:
            return {
                name: torch.from_numpy(np.require(column, requirements=("C", "W")))
                for name, column in columns.items()
            }
        places = self._places_of(columns)
        self.turn = (self.turn + 1) % MAX_STEPS_IN_FLIGHT
        self.copied[self.turn].synchronize()
        host = self.pinned[self.turn]
        words = host.numpy()
        for (start, stop), column in zip(places.words, columns.values(), strict=True):
            words[start:stop] = np.ascontiguousarray(column).reshape(-1).view(np.int32)
        total = places.total
        self.buffer[:total].copy_(host[:total], non_blocking=True)
        self.copied[self.turn].record()
        return dict(places.views)

    def freeze(self) -> None:
        """From now on the buffer keeps its address; `copy` raises RuntimeError rather than grow."""
        self.frozen = True

    def _places_of(self, columns: dict[str, np.ndarray]) -> _Places:
        """Kept, since steps have few layouts and views are made slowly."""
        layout = tuple((name, column.dtype, column.shape) for name, column in columns.items())
        if layout not in self._places:
            words, total = _word_ranges(columns)
            if total > len(self.buffer):
                if self.frozen:
                    raise RuntimeError(
                        f"a step's columns take {total} words, the buffer that graphs read holds "
                        f"{len(self.buffer)}"
                    )
                self._allocate(2 * total)
            if len(self._places) >= _KEPT_LAYOUTS:
                self._places.clear()
            views = {
                name: self.buffer[slice(*place)].view(_TORCH[dtype]).view(shape)
                for (name, dtype, shape), place in zip(layout, words, strict=True)
            }
            self._places[layout] = _Places(words, total, views)
        return self._places[layout]

    def _allocate(self, num_words: int) -> None:
        self._places.clear()
        self.buffer = torch.empty(num_words, dtype=torch.int32, device=self.device)
        self.pinned = [
            torch.empty(num_words, dtype=torch.int32, pin_memory=True)
            for _ in range(MAX_STEPS_IN_FLIGHT)
        ]


def _word_ranges(columns: dict[str, np.ndarray]) -> tuple[list[tuple[int, int]], int]:
    """First word and word behind the last of each column, and the words of all."""
    ranges = []
    start = 0
    for column in columns.values():
        words = column.nbytes // 4
        ranges.append((start, start + words))
        start += -(-words // _ALIGN_WORDS) * _ALIGN_WORDS
    return ranges, start
