"""Named buffers that kernels write their results to, shared by all layers and steps of a rank.

Owns their memory: a buffer grows until `freeze`, afterwards its address never changes, so that CUDA
graphs may hold it and a step allocates nothing. Two uses of one name are safe because a rank has
one compute stream: the later use is later on it. Does not know what is written.
"""

from __future__ import annotations

import math

import torch


class Workspace:
    """The buffers of one device."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.frozen = False
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor of undefined values, whose memory belongs to `name`.

        Raises RuntimeError when it does not fit and the workspace is frozen: an earlier warm-up did
        not see the largest shape.
        """
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            held = 0 if buffer is None else buffer.numel()
            if self.frozen:
                raise RuntimeError(
                    f"workspace {name!r} holds {held} bytes, {size} are asked for after start-up: "
                    "the warm-up missed this shape"
                )
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
            self._buffers[name] = buffer
        return buffer[:size].view(dtype).view(shape)

    def release(self) -> None:
        """Give all memory back, while nobody holds its addresses."""
        assert not self.frozen
        self._buffers.clear()

    def freeze(self) -> None:
        """From now on buffers keep their addresses."""
        self.frozen = True

    @property
    def num_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(buffer.numel() for buffer in self._buffers.values())
