"""Reading, scaling and ordering of logits, and the chunks of a row: the same for draw and filters.

Knows nothing of either. Shapes: V vocabulary, C chunks of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILE = 1024
_FEW_ROWS = 8


def tiles_per_chunk(num_rows: int, dtype: torch.dtype) -> int:
    """Tiles a program takes: one while few rows must fill the GPU. The result is the same.

    Logits in fp32 are those that penalties changed: one cut for all of them, so that as few kernels
    again are compiled at the start.
    """
    return 1 if num_rows <= _FEW_ROWS and dtype != torch.float32 else 4


def num_chunks(num_rows: int, vocab_size: int, dtype: torch.dtype) -> int:
    """C, the programs of a row."""
    return triton.cdiv(vocab_size, TILE * tiles_per_chunk(num_rows, dtype))


def workspace_size(max_rows: int, vocab_size: int) -> int:
    """The largest number of chunks of all rows together, for up to ``max_rows`` rows."""
    few, fine = min(max_rows, _FEW_ROWS), torch.bfloat16
    sizes = (rows * num_chunks(rows, vocab_size, fine) for rows in (few, max_rows))
    return max(sizes)


@triton.jit
def load_logits(row_ptr, ids, mask, LOWEST: tl.constexpr):
    """Logits in fp32, -inf where suppressed or masked, and whether each is finite."""
    x = tl.load(row_ptr + ids, mask=mask, other=0.0).to(tl.float32)
    finite = tl.abs(x) < float("inf")
    return tl.where(mask & (x != LOWEST), x, float("-inf")), finite


@triton.jit
def scale(x, temperature):
    """x / temperature with IEEE rounding, as the oracle; most rows have temperature 1."""
    if temperature != 1.0:
        x = tl.div_rn(x, temperature)
    return x


@triton.jit
def order_key(x):
    """An int32 that orders as the fp32 x does; -0 counts as 0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_key(key):
    """The fp32 of an order_key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
