"""The paged KV cache of one rank: its memory, and how much of it there may be.

Which block belongs to whom is the frontend's business.
"""

from __future__ import annotations

import dataclasses
import os

import torch

_CUDA_RESERVE_BYTES = 2 << 30  # for CUDA graphs and the allocator's fragments


@dataclasses.dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer, each ``[num_blocks, block_size, kv_heads, head_dim]``."""

    keys: torch.Tensor
    values: torch.Tensor

    def write(self, slots_T: torch.Tensor, k_TND: torch.Tensor, v_TND: torch.Tensor) -> None:
        """Store tokens; slot = block * block_size + offset."""
        self.keys.flatten(0, 1).index_copy_(0, slots_T, k_TND)
        self.values.flatten(0, 1).index_copy_(0, slots_T, v_TND)


class KVCache:
    """One LayerCache a layer, allocated once."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.layers = [
            LayerCache(
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for _ in range(num_layers)
        ]


def bytes_per_block(
    *, num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Bytes one block takes on one rank over all layers: keys and values."""
    return 2 * num_layers * block_size * num_kv_heads * head_dim * dtype.itemsize


def free_bytes(
    device: torch.device, memory_fraction: float, workspace: int, ranks_here: int
) -> int:
    """Bytes this rank may give to its KV cache, after a warm-up at the largest shapes.

    CUDA: fraction × total − what is used now (without the allocator's spare) − workspace − a
    reserve for graphs. CPU: fraction × available memory, shared by the ranks on this machine.

    Args:
        workspace: bytes a step of the largest shape takes beyond weights and cache.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        used = total - free - spare
        return int(memory_fraction * total) - used - workspace - _CUDA_RESERVE_BYTES
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(memory_fraction * available) // ranks_here
