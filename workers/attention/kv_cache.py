"""The paged KV cache of one rank: its memory, and how much of it there may be.

The frontend decides which sequence holds which block.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from workers.config import WorkerConfig
from workers.zeros import zeros

GRAPH_RESERVE_BYTES = 2 << 30  # for CUDA graphs and the allocator's fragments


@dataclasses.dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer, each ``[num_blocks, block_size, kv_heads, head_dim]``."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return int(self.keys.shape[1])

    def write(self, cache_rows_T: torch.Tensor, k_TND: torch.Tensor, v_TND: torch.Tensor) -> None:
        """Store tokens; row = block * block_size + offset.

        Values that are not finite are stored as 0. Attention reads whole blocks and masks the
        places of other rows; a masked NaN would still spread to the next sequence with the block.
        """
        self.keys.flatten(0, 1).index_copy_(0, cache_rows_T, k_TND.nan_to_num(0.0, 0.0, 0.0))
        self.values.flatten(0, 1).index_copy_(0, cache_rows_T, v_TND.nan_to_num(0.0, 0.0, 0.0))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheSizes:
    """What one block of a rank's cache holds: the same numbers for any number of blocks."""

    num_layers: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_block(self) -> int:
        """Bytes one block takes on one rank over all layers: keys and values."""
        values = self.num_layers * self.block_size * self.num_kv_heads * self.head_dim
        return 2 * values * self.dtype.itemsize


class KVCache:
    """One LayerCache a layer, allocated once."""

    def __init__(self, sizes: CacheSizes, num_blocks: int, device: torch.device) -> None:
        shape = (num_blocks, sizes.block_size, sizes.num_kv_heads, sizes.head_dim)
        self.num_blocks = num_blocks
        self.block_size = sizes.block_size
        self.layers = [
            LayerCache(zeros(shape, sizes.dtype, device), zeros(shape, sizes.dtype, device))
            for _ in range(sizes.num_layers)
        ]


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
        return int(memory_fraction * total) - used - workspace - GRAPH_RESERVE_BYTES
    return int(memory_fraction * _available_memory()) // ranks_here


def unused_bytes(device: torch.device, ranks_here: int) -> int:
    """Bytes that nobody uses now: of a card, or this rank's share of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _available_memory() // ranks_here


def blocks_that_fit(config: WorkerConfig, max_model_len: int, block_bytes: int, budget: int) -> int:
    """Blocks of the KV cache: as many as fit, but not more than all slots together can use.

    Raises:
        ValueError: not even one fits.
    """
    if config.num_blocks is not None:
        return config.num_blocks
    usable = config.max_batch_size * -(-max_model_len // config.block_size)
    num_blocks = min(usable, budget // block_bytes)
    if num_blocks < 1:
        raise ValueError(
            f"--memory-fraction {config.memory_fraction} leaves {budget / 2**30:.1f} GiB for the "
            f"KV cache, one block takes {block_bytes / 2**20:.1f} MiB; raise it, or lower "
            "--max-num-batched-tokens or --max-batch-size"
        )
    return num_blocks


def _available_memory() -> int:
    """Bytes of memory that programs may still take, within this container's limit (Linux)."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    available = int(line.split()[1]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        available = min(available, max(0, int(text) - used))
    return available
