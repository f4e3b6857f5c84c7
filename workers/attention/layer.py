"""Attention of a mixed batch over the paged KV cache, in plain torch or by kernels.

Owns the plain arithmetic and the gathering of blocks, and which kernels take which rows; knows
nothing of projections, norms or where the batch came from. Shapes: T tokens, S sequences (rows), B
blocks, N query heads, K key/value heads, G = N / K, D head_dim, L context length.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from moe.base.context import KernelContext
from workers.attention.kernels.decode_attention import DecodeWorkspace, decode_attention
from workers.attention.kernels.prefill_attention import PrefillWorkspace, prefill_attention
from workers.attention.kv_cache import LayerCache
from workers.attention.plan import prefill_tiles

# Decodes are gathered in groups of at most this many context tokens, which bounds the workspace.
_MAX_GATHERED_TOKENS = 1 << 18


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBatch:
    """Which tokens belong to which sequences; rows as in StepRequest, decodes first.

    Attributes:
        positions_T: position of each token in its sequence, int32.
        slots_T: slot of each token's sequence, int32; -1 is padding.
        tables: blocks of each slot, int32 ``[num_slots, max_blocks]``; behind a sequence's own,
            any valid ids.
        slots: slot of each row, on the host.
        lengths: context of each row after this step, on the host.
        num_tokens: tokens of each row, on the host.
        num_decodes: leading rows of one token.
        chunks: of attention.plan.plan_decode; None without kernels or decodes.
        finished_SK: of DecodeWorkspace, the same tensor at every step; read by kernels alone.
        tiles: of attention.plan.plan_prefill, or of prefill_split.split_tiles; None without kernels
            or prefills.
        finished_CK: of PrefillWorkspace, as above; None without split tiles.
    """

    positions_T: torch.Tensor
    slots_T: torch.Tensor
    tables: torch.Tensor
    slots: list[int]
    lengths: list[int]
    num_tokens: list[int]
    num_decodes: int
    chunks: torch.Tensor | None = None
    finished_SK: torch.Tensor | None = None
    tiles: torch.Tensor | None = None
    finished_CK: torch.Tensor | None = None


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
    block, offset = batch.positions_T // cache.block_size, batch.positions_T % cache.block_size
    blocks_T = batch.tables[batch.slots_T, block].long()
    cache.write(blocks_T * cache.block_size + offset, k_TKD, v_TKD)
    outputs = []
    for first, last in decode_groups(batch):
        outputs.append(_decode(q_TND[first:last], cache, batch, first, last))
    start = batch.num_decodes
    for row in range(batch.num_decodes, len(batch.lengths)):
        stop = start + batch.num_tokens[row]
        outputs.append(_prefill(q_TND[start:stop], cache, batch, row))
        start = stop
    attended = torch.cat(outputs) if outputs else q_TND
    return attended.flatten(1)


def kernel_attention(
    q_TND: torch.Tensor, cache: LayerCache, batch: AttentionBatch, context: KernelContext
) -> torch.Tensor:
    """As ``paged_attention``, with keys and values that `kernels.qk_rope` has stored."""
    T, N, D = q_TND.shape
    take = context.workspace.take
    out_TND = take("attended", (T, N, D), q_TND.dtype)
    decodes = batch.num_decodes
    if decodes:
        assert batch.chunks is not None
        assert batch.finished_SK is not None
        capacity = len(batch.chunks)
        workspace = DecodeWorkspace(
            partials_CND=take("attention_parts", (capacity, N, D), torch.float32),
            lse_CN=take("attention_lse", (capacity, N), torch.float32),
            finished_SK=batch.finished_SK,
        )
        decode_attention(
            q_TND[:decodes],
            cache,
            batch.tables,
            batch.chunks,
            out=out_TND[:decodes],
            workspace=workspace,
            pdl=context.pdl,
        )
    if batch.tiles is not None:
        prefill_attention(
            q_TND,
            cache,
            batch.tables,
            batch.tiles,
            out=out_TND,
            workspace=_prefill_workspace(batch, T, cache, context),
            pdl=context.pdl,
        )
    return out_TND.view(T, N * D)


def _prefill_workspace(
    batch: AttentionBatch, num_tokens: int, cache: LayerCache, context: KernelContext
) -> PrefillWorkspace | None:
    """None without split tiles."""
    if batch.finished_CK is None:
        return None
    _, _, kv_heads, head_dim = cache.keys.shape
    take = context.workspace.take
    shape = (len(batch.finished_CK), kv_heads, prefill_tiles(num_tokens).block_m, head_dim)
    return PrefillWorkspace(
        partials_CKMD=take("attention_tile_parts", shape, torch.float32),
        lse_CKM=take("attention_tile_lse", shape[:3], torch.float32),
        finished_CK=batch.finished_CK,
    )


def decode_groups(batch: AttentionBatch) -> list[tuple[int, int]]:
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
    num_blocks = -(-longest // cache.block_size)
    tables_SB = batch.tables[batch.slots[first:last], :num_blocks]
    gathered = cache.read(tables_SB, q_SND.dtype)
    k_SLKD, v_SLKD = (each.flatten(1, 2)[:, :longest] for each in gathered)
    mask = None
    if last - first > 1:
        positions_L = torch.arange(longest, device=q_SND.device)
        mask = (positions_L <= batch.positions_T[first:last, None])[:, None, None, :]
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
    num_blocks = -(-length // cache.block_size)
    table_B = batch.tables[batch.slots[row], :num_blocks]
    gathered = cache.read(table_B, q_TND.dtype)
    k_LKD, v_LKD = (each.flatten(0, 1)[:length] for each in gathered)
    out_NTD = F.scaled_dot_product_attention(
        q_TND.transpose(0, 1)[None],
        k_LKD.transpose(0, 1)[None],
        v_LKD.transpose(0, 1)[None],
        attn_mask=_causal_mask(num_tokens, length, q_TND.device) if num_tokens > 1 else None,
        enable_gqa=True,
    )[0]
    return out_NTD.transpose(0, 1)


def _causal_mask(num_tokens: int, length: int, device: torch.device) -> torch.Tensor:
    """What the last queries of a context see ``[T, L]``."""
    if device.type == "cpu":
        return torch.ones(num_tokens, length, dtype=torch.bool).tril(length - num_tokens)
    # Here, not above: it imports torch's compiler, which takes more than a second.
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(num_tokens, length)
