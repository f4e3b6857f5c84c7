"""Attention of a mixed batch over the paged KV cache, in plain torch.

Owns the arithmetic and the gathering of blocks; knows nothing of projections, norms or where the
batch came from. Shapes: T tokens, S sequences (rows), B blocks, N query heads, K key/value heads,
G = N / K, D head_dim, L context length.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from workers.kv_cache import LayerCache

# Decodes are gathered in groups of at most this many context tokens, which bounds the workspace.
_MAX_GATHERED_TOKENS = 1 << 18


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBatch:
    """Which tokens belong to which sequences; rows as in StepRequest, decodes first.

    Attributes:
        slots_T: where each token's key and value go, int64.
        block_tables_SB: blocks of each row, int64; behind a row's own, any valid ids.
        lengths: context of each row after this step, on the host.
        lengths_S: the same on the device, int64.
        num_tokens: tokens of each row, on the host.
        num_decodes: leading rows of one token.
    """

    slots_T: torch.Tensor
    block_tables_SB: torch.Tensor
    lengths: list[int]
    lengths_S: torch.Tensor
    num_tokens: list[int]
    num_decodes: int


def gather_bytes(num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes a group of decodes takes at most: keys and values gathered, and laid out once more for
    the attention kernel."""
    return 4 * _MAX_GATHERED_TOKENS * num_kv_heads * head_dim * dtype.itemsize


def paged_attention(
    q_TND: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
) -> torch.Tensor:
    """Store the batch's keys and values, then attend causally; scale 1 / sqrt(D).

    Returns:
        ``[T, N * D]``.
    """
    cache.write(batch.slots_T, k_TKD, v_TKD)
    parts = []
    for first, last in _decode_groups(batch):
        parts.append(_decode(q_TND[first:last], cache, batch, first, last))
    start = batch.num_decodes
    for row in range(batch.num_decodes, len(batch.lengths)):
        stop = start + batch.num_tokens[row]
        parts.append(_prefill(q_TND[start:stop], cache, batch, row))
        start = stop
    attended = torch.cat(parts) if parts else q_TND
    return attended.flatten(1)


def _decode_groups(batch: AttentionBatch) -> list[tuple[int, int]]:
    """Ranges of decode rows whose padded contexts fit the workspace."""
    if not batch.num_decodes:
        return []
    longest = max(batch.lengths[: batch.num_decodes])
    size = max(1, _MAX_GATHERED_TOKENS // longest)
    return [
        (first, min(first + size, batch.num_decodes)) for first in range(0, batch.num_decodes, size)
    ]


def _decode(
    q_SND: torch.Tensor, cache: LayerCache, batch: AttentionBatch, first: int, last: int
) -> torch.Tensor:
    """One query token a row, all rows padded to the longest context: ``[S, N, D]``."""
    longest = max(batch.lengths[first:last])
    num_blocks = -(-longest // cache.keys.shape[1])
    tables_SB = batch.block_tables_SB[first:last, :num_blocks]
    k_SLKD = cache.keys[tables_SB].flatten(1, 2)[:, :longest]
    v_SLKD = cache.values[tables_SB].flatten(1, 2)[:, :longest]
    mask = None
    if last - first > 1:
        positions_L = torch.arange(longest, device=q_SND.device)
        mask = (positions_L < batch.lengths_S[first:last, None])[:, None, None, :]
    # The N / K query heads of a key head stand where several queries would: no key is repeated.
    q_SKGD = q_SND.unflatten(1, (k_SLKD.shape[2], -1))
    out_SKGD = F.scaled_dot_product_attention(
        q_SKGD, k_SLKD.transpose(1, 2), v_SLKD.transpose(1, 2), attn_mask=mask
    )
    return out_SKGD.flatten(1, 2)


def _prefill(
    q_TND: torch.Tensor, cache: LayerCache, batch: AttentionBatch, row: int
) -> torch.Tensor:
    """Several query tokens of one row, the last ones of its context."""
    length, num_tokens = batch.lengths[row], batch.num_tokens[row]
    num_blocks = -(-length // cache.keys.shape[1])
    table_B = batch.block_tables_SB[row, :num_blocks]
    k_LKD = cache.keys[table_B].flatten(0, 1)[:length]
    v_LKD = cache.values[table_B].flatten(0, 1)[:length]
    out_NTD = F.scaled_dot_product_attention(
        q_TND.transpose(0, 1)[None],
        k_LKD.transpose(0, 1)[None],
        v_LKD.transpose(0, 1)[None],
        attn_mask=causal_lower_right(num_tokens, length) if num_tokens > 1 else None,
        enable_gqa=True,
    )[0]
    return out_NTD.transpose(0, 1)
