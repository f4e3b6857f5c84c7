"""The paged KV cache of one rank: its memory, its two formats, and how much of it there may be.

The frontend decides which sequence holds which block. Shapes: T tokens, K key/value heads, D
head_dim of keys, V of values.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from workers.config import WorkerConfig
from workers.linear_attention.states import StateSizes
from workers.zeros import zeros

GRAPH_RESERVE_BYTES = 2 << 30  # for CUDA graphs and the allocator's fragments

FP8 = torch.float8_e4m3fn
SCALE_DTYPE = torch.bfloat16  # holds any power of two that fp32 has


@dataclasses.dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer.

    Attributes:
        keys, values: ``[num_blocks, block_size, kv_heads, head_dim]``, in the model's dtype or FP8;
            values of a width of their own, which may be 0.
        scales: of FP8 alone, ``[num_blocks, kv_heads, block_size, 2]``: the powers of two that a
            head's key and its value of one token are multiplied by. Apart from `keys`, so that the
            scales of a head's tokens are neighbours.
    """

    keys: torch.Tensor
    values: torch.Tensor
    scales: torch.Tensor | None = None

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return int(self.keys.shape[1])

    def write(self, cache_rows_T: torch.Tensor, k_TKD: torch.Tensor, v_TKV: torch.Tensor) -> None:
        """Store tokens; row = block * block_size + offset.

        Values that are not finite are stored as 0. Attention reads whole blocks and masks the
        places of other rows; a masked NaN would still spread to the next sequence with the block.
        """
        for part, (cache, x_TKD) in enumerate(((self.keys, k_TKD), (self.values, v_TKV))):
            if not cache.shape[3]:
                continue
            entries_TKD = x_TKD.nan_to_num(0.0, 0.0, 0.0)
            if self.scales is not None:
                entries_TKD, scales_TK = quantize(entries_TKD)
                block_T, offset_T = cache_rows_T // self.block_size, cache_rows_T % self.block_size
                self.scales[block_T, :, offset_T, part] = scales_TK
            _bytes(cache).flatten(0, 1).index_copy_(0, cache_rows_T, _bytes(entries_TKD))

    def read(self, blocks: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of some blocks, in ``dtype``: ``[*blocks.shape, block_size, K, D]`` and
        ``[…, V]``."""
        k, v = self.keys[blocks], self.values[blocks]
        if self.scales is None:
            return k, v
        k_scale, v_scale = self.scales[blocks].transpose(-3, -2).to(dtype).unbind(-1)
        return k.to(dtype) * k_scale[..., None], v.to(dtype) * v_scale[..., None]


def quantize(x_TKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Finite values in FP8, and a scale a token and head ``[T, K]``: the least power of two, from
    2^-63 on, with which the largest of a head's values is at most 448, which is FP8's.

    FP8 has an exponent of its own, so another factor than a power of two would be no more exact.
    """
    top_TK = x_TKD.float().abs().amax(-1)
    # Exponent and mantissa, the former one more where the latter is above 1.75 = 448 / 256.
    exponent_TK = ((top_TK.view(torch.int32) + 0x1FFFFF) >> 23) - 8
    scales_TK = (exponent_TK.clamp(min=64) << 23).view(torch.float32)
    return (x_TKD.float() / scales_TK[..., None]).to(FP8), scales_TK.to(SCALE_DTYPE)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """FP8 as bytes, which torch can index on any device; other types as they are."""
    return values.view(torch.uint8) if values.dtype == FP8 else values


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheSizes:
    """What one block of a rank's cache holds: the same numbers for any number of blocks.

    Attributes:
        num_layers: of a group of layers, which is what a block holds keys and values of.
        head_dim: of keys; v_head_dim: of values, 0 where they are made of the keys.
        dtype: of an entry's numbers; FP8 has scales besides.
        states: of the layers without keys and values; they are of no block.
    """

    num_layers: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    dtype: torch.dtype
    states: StateSizes | None = None

    @property
    def bytes_per_block(self) -> int:
        """Bytes one block takes on one rank over its layers: keys and values."""
        scale = SCALE_DTYPE.itemsize if self.dtype == FP8 else 0
        width = (self.head_dim + self.v_head_dim) * self.dtype.itemsize + 2 * scale
        return self.num_layers * self.block_size * self.num_kv_heads * width


class KVCache:
    """A LayerCache for each place of a layer in its group, allocated once.

    Layers of different groups at one place share it: no block is two groups'.

    Attributes:
        states: of the layers that keep some in place of keys and values, in their order.
    """

    def __init__(self, sizes: CacheSizes, num_blocks: int, device: torch.device) -> None:
        self.num_blocks = num_blocks
        self.block_size = sizes.block_size
        self.layers = [_layer(sizes, num_blocks, device) for _ in range(sizes.num_layers)]
        self.states = [] if sizes.states is None else sizes.states.allocate(device)


def _layer(sizes: CacheSizes, num_blocks: int, device: torch.device) -> LayerCache:
    block_size, kv_heads = sizes.block_size, sizes.num_kv_heads
    shape = (num_blocks, block_size, kv_heads)
    scales = None
    if sizes.dtype == FP8:
        scales = zeros((num_blocks, kv_heads, block_size, 2), SCALE_DTYPE, device)
    widths = (sizes.head_dim, sizes.v_head_dim)
    keys, values = (zeros((*shape, width), sizes.dtype, device) for width in widths)
    return LayerCache(keys, values, scales)


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


def blocks_that_fit(
    config: WorkerConfig,
    max_model_len: int,
    block_bytes: int,
    budget: int,
    num_groups: int = 1,
) -> int:
    """Blocks of the KV cache: as many as fit, but not more than all slots together can use with
    those behind windows, which later sequences may find.

    Args:
        num_groups: groups of layers, each of which takes blocks of its own.

    Raises:
        ValueError: not even one for each group fits.
    """
    if config.num_blocks is not None:
        if config.num_blocks < num_groups:
            raise ValueError(
                f"--num-blocks {config.num_blocks}: layers of different windows take blocks of "
                f"their own, a token's needs {num_groups}; raise it"
            )
        return config.num_blocks
    usable = num_groups * config.max_batch_size * -(-max_model_len // config.block_size)
    num_blocks = min(usable, budget // block_bytes)
    if num_blocks < num_groups:
        raise ValueError(
            f"--memory-fraction {config.memory_fraction} leaves {budget / 2**30:.1f} GiB for the "
            f"KV cache, one block takes {num_groups * block_bytes / 2**20:.1f} MiB; raise it, or "
            "lower --max-num-batched-tokens or --max-batch-size"
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
