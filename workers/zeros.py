"""Zeros that take a machine's memory only where they are written.

To write what a whole machine has takes up to a minute. Knows nothing of what they are for.
"""

from __future__ import annotations

import math
import mmap

import torch


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU in pages of their own, which the system makes at the first write to each.

    Raises:
        ValueError: the system has no room for so many, or a limit of the shell is below.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not num_bytes:
        return torch.zeros(shape, dtype=dtype, device=device)
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise ValueError(
            f"cannot have {num_bytes / 2**30:.1f} GiB of memory: {error.strerror}; lower "
            "--memory-fraction, --num-blocks or --max-model-len"
        ) from None
    return torch.frombuffer(pages, dtype=dtype).view(shape)
