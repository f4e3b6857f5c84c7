"""Columns of numbers copied from the host to the device, in one copy a step.

Owns the pinned memory, its reuse, and where a column lies. Knows nothing of what columns mean.
"""

from __future__ import annotations

import numpy as np
import torch

from switchyard.worker.link import MAX_STEPS_IN_FLIGHT

_ALIGN_WORDS = 4  # 16 bytes: kernels compiled for aligned columns stay right for all steps
_TORCH = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32}


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
        places, total = _places(columns)
        self.turn = (self.turn + 1) % MAX_STEPS_IN_FLIGHT
        if total > len(self.buffer):
            if self.frozen:
                raise RuntimeError(
                    f"a step's columns take {total} words, the buffer that graphs read holds "
                    f"{len(self.buffer)}"
                )
            self._allocate(2 * total)
        self.copied[self.turn].synchronize()
        host = self.pinned[self.turn]
        words = host.numpy()
        for name, column in columns.items():
            start, stop = places[name]
            words[start:stop] = np.ascontiguousarray(column).reshape(-1).view(np.int32)
        self.buffer[:total].copy_(host[:total], non_blocking=True)
        self.copied[self.turn].record()
        return {
            name: self.buffer[slice(*places[name])]
            .view(_TORCH[column.dtype.name])
            .view(column.shape)
            for name, column in columns.items()
        }

    def freeze(self) -> None:
        """From now on the buffer keeps its address; `copy` raises RuntimeError rather than grow."""
        self.frozen = True

    def _allocate(self, num_words: int) -> None:
        self.buffer = torch.empty(num_words, dtype=torch.int32, device=self.device)
        self.pinned = [
            torch.empty(num_words, dtype=torch.int32, pin_memory=True)
            for _ in range(MAX_STEPS_IN_FLIGHT)
        ]


def _places(columns: dict[str, np.ndarray]) -> tuple[dict[str, tuple[int, int]], int]:
    """First word and word behind the last of each column, and the words of all."""
    places: dict[str, tuple[int, int]] = {}
    start = 0
    for name, column in columns.items():
        words = column.nbytes // 4
        places[name] = (start, start + words)
        start += -(-words // _ALIGN_WORDS) * _ALIGN_WORDS
    return places, start
