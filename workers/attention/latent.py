"""Attention of a mixed batch over a paged cache of latents, in plain torch or by kernels.

Owns which kernels take which rows; knows nothing of projections or norms. Queries are absorbed:
they meet a token's entry as it is, its latent and the turned part of its key, and what they find is
a mean of latents. So all query heads share one key, whose leading part is its value too. Shapes: T
tokens, S sequences (rows), N query heads, E width of an entry, C that of its latent, L context.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from workers.attention.kv_cache import LayerCache
from workers.attention.layer import AttentionBatch, decode_groups


def paged_latent_attention(
    q_TNE: torch.Tensor,
    entries_TE: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    *,
    latent_width: int,
    scale: float,
) -> torch.Tensor:
    """Store the batch's entries, then attend causally: ``[T, N, C]``."""
    block, offset = batch.positions_T // cache.block_size, batch.positions_T % cache.block_size
    blocks_T = batch.tables[batch.slots_T, block].long()
    keys_T1E = entries_TE.unsqueeze(1)
    cache.write(blocks_T * cache.block_size + offset, keys_T1E, keys_T1E[..., :0])
    outputs = []
    for first, last in decode_groups(batch):
        entries_SLE = _entries(cache, batch, first, last, q_TNE.dtype)
        mask_S1L = _mask(batch.positions_T[first:last], entries_SLE)[:, None]
        outputs.append(_attend(q_TNE[first:last], entries_SLE, mask_S1L, latent_width, scale))
    start = batch.num_decodes
    for row in range(batch.num_decodes, len(batch.lengths)):
        stop = start + batch.num_tokens[row]
        entries_1LE = _entries(cache, batch, row, row + 1, q_TNE.dtype)
        mask_TL = _mask(batch.positions_T[start:stop], entries_1LE)
        q_NTE = q_TNE[start:stop].transpose(0, 1)
        found_NTC = _attend(q_NTE, entries_1LE, mask_TL, latent_width, scale)
        outputs.append(found_NTC.transpose(0, 1))
        start = stop
    return torch.cat(outputs) if outputs else q_TNE[..., :latent_width]


def _entries(
    cache: LayerCache, batch: AttentionBatch, first: int, last: int, dtype: torch.dtype
) -> torch.Tensor:
    """What the cache holds of some rows, padded to the longest context ``[S, L, E]``."""
    longest = max(batch.lengths[first:last])
    tables_SB = batch.tables[batch.slots[first:last], : -(-longest // cache.block_size)]
    keys, _ = cache.read(tables_SB, dtype)
    return keys.flatten(1, 2)[:, :longest, 0]


def _mask(positions_T: torch.Tensor, entries_SLE: torch.Tensor) -> torch.Tensor:
    """Which of a context's entries each query sees ``[T, L]``."""
    places_L = torch.arange(entries_SLE.shape[1], device=positions_T.device)
    return places_L <= positions_T[:, None]


def _attend(
    q_BME: torch.Tensor,
    entries_SLE: torch.Tensor,
    mask: torch.Tensor,
    latent_width: int,
    scale: float,
) -> torch.Tensor:
    """``[B, M, C]``: M queries of each row, or of each head with the entries of one row."""
    entries_BLE = entries_SLE.expand(len(q_BME), -1, -1)
    return F.scaled_dot_product_attention(
        q_BME, entries_BLE, entries_BLE[..., :latent_width], attn_mask=mask, scale=scale
    )
