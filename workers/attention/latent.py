"""Attention of a mixed batch over a paged cache of latents, in plain torch or by kernels.

Owns which kernels take which rows; knows nothing of projections or norms. Queries are absorbed:
they meet a token's entry as it is, its latent and the turned part of its key, and what they find is
a mean of latents. So all query heads share one key, whose leading part is its value too. Shapes: T
tokens, S sequences (rows), N query heads, E width of an entry, C that of its latent, L context.
"""

from __future__ import annotations

import torch

from moe.base.context import KernelContext
from workers.attention.kernels.decode_attention import DecodeWorkspace
from workers.attention.kernels.mla_decode import decode_latents
from workers.attention.kernels.mla_prefill import prefill_latents
from workers.attention.kernels.mla_tiles import check_latents
from workers.attention.kv_cache import LayerCache
from workers.attention.layer import AttentionBatch, attend_rows, prefill_workspace
from workers.attention.mla_spec import head_groups
from workers.attention.plain import Softmax
from workers.attention.plan import AttentionKind


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
    check_latents(cache, q_TNE.shape[2], q_TNE.dtype)
    block, offset = batch.positions_T // cache.block_size, batch.positions_T % cache.block_size
    blocks_T = batch.tables[batch.slots_T, block].long()
    keys_T1E = entries_TE.unsqueeze(1)
    cache.write(blocks_T * cache.block_size + offset, keys_T1E, keys_T1E[..., :0])
    latents = LayerCache(cache.keys, cache.keys[..., :latent_width])
    return attend_rows(q_TNE, latents, batch, Softmax(scale, None, None))


def kernel_latent_attention(
    q_TNE: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    context: KernelContext,
    *,
    latent_width: int,
    scale: float,
    old_lse_TN: torch.Tensor | None = None,
) -> torch.Tensor:
    """As ``paged_latent_attention``, with entries that `kernels.mla_latent` has stored. The batch's
    plans are made for `head_groups` key heads.

    Args:
        old_lse_TN: prompts attend to what was there before the step alone, and leave their
            log-sum-exps here.
    """
    T, N, _ = q_TNE.shape
    plan = batch.plans[AttentionKind(None, N)]
    take = context.workspace.take
    out_TNC = take("attended_latents", (T, N, latent_width), q_TNE.dtype)
    decodes = batch.num_decodes
    if decodes:
        assert plan.chunks is not None
        assert batch.finished_SK is not None
        capacity = len(plan.chunks)
        decode_latents(
            q_TNE[:decodes],
            cache,
            batch.tables,
            plan.chunks,
            scale=scale,
            out_SNC=out_TNC[:decodes],
            workspace=DecodeWorkspace(
                partials_CNV=take("attention_parts", (capacity, N, latent_width), torch.float32),
                lse_CN=take("attention_lse", (capacity, N), torch.float32),
                finished_SK=batch.finished_SK,
            ),
            pdl=context.pdl,
        )
    if plan.tiles is not None:
        prefill_latents(
            q_TNE,
            cache,
            batch.tables,
            plan.tiles,
            scale=scale,
            out_TNC=out_TNC,
            starts_T=None if old_lse_TN is None else batch.starts_T,
            out_lse_TN=old_lse_TN,
            workspace=prefill_workspace(
                batch, plan.tiles, T, (head_groups(N), latent_width), context
            ),
            pdl=context.pdl,
        )
    return out_TNC
