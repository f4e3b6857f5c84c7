"""Checks of latent attention: projections, entries of the cache, absorbed queries, attention, and
what becomes of it.

Owns what plain torch says of each stage, in fp32, given what the stage before wrote, which is still
in the workspace. T tokens of the step, N query heads, P and R widths of a query's parts, C of a
latent, E = C + R, V of a value, L context.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from workers.attention.kv_cache import LayerCache
from workers.attention.layer import AttentionBatch
from workers.models.mla import LatentAttention
from workers.self_check.attention import cache_rows, check_steps
from workers.self_check.dense import check_parts, check_rows, product, rms_norm
from workers.self_check.finding import Finding, compare, roundings, told
from workers.self_check.setting import Setting

_QUERIES_AT_ONCE = 128  # whose scores are in memory together


def check_latents(attention: LatentAttention, setting: Setting) -> Iterator[Finding]:
    """All stages of it."""
    return check_steps(attention, setting, _check_step)


def _check_step(
    attention: LatentAttention, cache: LayerCache, batch: AttentionBatch, setting: Setting
) -> Iterator[Finding]:
    spec, T, N = attention.spec, len(batch.positions_T), attention.num_heads
    P, R, C, V = spec.qk_nope_head_dim, spec.qk_rope_head_dim, spec.kv_lora_rank, spec.v_head_dim
    what, dtype = f"{N} heads over latents of {C}, {told(T)}", setting.dtype

    def held(name: str, *shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return setting.context.workspace.take(name, shape, dtype)

    weight = attention.qkv_a_proj.weight
    x_TH = setting.rows(T, weight.shape[1])
    down_STW = attention.qkv_a_proj(
        x_TH, setting.quantized(x_TH, wanted=attention.takes_quantized(T))
    )
    yield check_parts("first projection", x_TH, weight, down_STW, setting)
    # What is projected next is written over it.
    down_TW = down_STW.float().sum(0)
    attended_TW = attention.attend(down_STW, cache, batch, setting.context)

    q_TW, latent_TC, k_TR = down_TW.split([attention.qkv_a_proj.splits[0], C, R], dim=1)
    latent_TC = rms_norm(latent_TC, attention.kv_a_layernorm.weight, spec.norm_eps)
    k_TR = attention.turn(k_TR[:, None], batch)[:, 0]
    entries = cache.keys.flatten(0, 1)[:, 0].float()
    rows_T = cache_rows(cache, batch.tables, batch.slots_T, batch.positions_T)
    expected_TE = torch.cat((latent_TC, k_TR), dim=-1)
    yield compare(f"entries of {what}", entries[rows_T], expected_TE, roundings(4, dtype))
    if attention.q_b_proj is not None:
        normed_TQ = rms_norm(q_TW, attention.q_a_layernorm.weight, spec.norm_eps)
        latent_TQ = held("q_latent", *normed_TQ.shape)
        yield check_rows(f"norm of {normed_TQ.shape[1]}, {told(T)}", latent_TQ, normed_TQ, 4)
        q_TW = product(latent_TQ, attention.q_b_proj.weight)
    q_TNP, q_TNR = attention.grown(q_TW.unflatten(1, (N, -1)), batch).split([P, R], dim=-1)
    keys_NPC, values_NVC = attention.absorbed(torch.float32)
    q_TNC = torch.einsum("tnp,npc->tnc", q_TNP, keys_NPC.float())
    q_TNE = held("q", T, N, C + R)
    q_TNR = attention.turn(q_TNR, batch)
    yield check_rows(f"absorbed queries of {what}", q_TNE[..., :C], q_TNC, 3)
    yield check_rows(f"turned queries of {what}", q_TNE[..., C:], q_TNR, 3)

    found_TNC = held("attended_latents", T, N, C)
    makes_keys = attention.makes_keys(batch, T)
    expected_TNC, lse_TN = _attend(q_TNE, entries, cache, batch, attention, old=makes_keys)
    kind = "decode" if batch.num_decodes else "prefill"
    yield check_rows(f"{kind} attention of {what}", found_TNC, expected_TNC, 3)
    total_TNV = torch.einsum("tnc,nvc->tnv", found_TNC.float(), values_NVC.float())
    if makes_keys:
        q_TNP, latents_TC = held("q_nope", T, N, P), held("latents", T, C)
        kv_TNW = product(latents_TC, attention.kv_b_proj.weight).unflatten(1, (N, -1))
        queries = torch.cat((q_TNP, q_TNE[..., C:]), dim=-1)
        new_TNV, new_lse_TN = _attend_new(queries, kv_TNW, held("turned", T, R), batch, attention)
        yield check_rows(f"new tokens of {what}", held("found_new", T, N, V), new_TNV, 5)
        share_TN1 = torch.sigmoid(new_lse_TN - lse_TN)[..., None]
        new_TNV = held("found_new", T, N, V).float()
        total_TNV = total_TNV * (1 - share_TN1) + new_TNV * share_TN1
    yield check_rows(f"values of {what}", attended_TW, total_TNV.flatten(1), 2)


def _attend(
    q_TNE: torch.Tensor,
    entries: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    attention: LatentAttention,
    *,
    old: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over latents ``[T, N, C]`` and log-sum-exps ``[T, N]``, in fp32.

    Args:
        old: over those that are older than the step, if there are any.
    """
    C = attention.spec.kv_lora_rank
    outputs, lses, start = [], [], 0
    for slot, length, count in zip(batch.slots, batch.lengths, batch.num_tokens, strict=True):
        positions_L = torch.arange(length, device=q_TNE.device)
        rows_L = cache_rows(cache, batch.tables, positions_L.new_tensor(slot), positions_L)
        entries_LE = entries[rows_L]
        for own_T in positions_L[length - count :].split(_QUERIES_AT_ONCE):
            q = q_TNE[start : start + len(own_T)].float()
            scores_TNL = torch.einsum("tne,le->tnl", q, entries_LE) * attention.spec.scale
            last_T = torch.full_like(own_T, length - count - 1) if old else own_T
            is_seen_TL = positions_L <= last_T[:, None]
            scores_TNL.masked_fill_(~is_seen_TL[:, None], -torch.inf)
            weights_TNL = scores_TNL.softmax(-1).nan_to_num(0.0)
            outputs.append(torch.einsum("tnl,lc->tnc", weights_TNL, entries_LE[:, :C]))
            lses.append(scores_TNL.logsumexp(-1))
            start += len(own_T)
    return torch.cat(outputs), torch.cat(lses)


def _attend_new(
    q_TNQ: torch.Tensor,
    kv_TNW: torch.Tensor,
    turned_TR: torch.Tensor,
    batch: AttentionBatch,
    attention: LatentAttention,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention among the tokens of each row, and log-sum-exps, in fp32."""
    outputs, lses = [], []
    width = attention.spec.qk_nope_head_dim
    pieces = (each.float().split(batch.num_tokens) for each in (q_TNQ, kv_TNW, turned_TR))
    for q, kv, turned in zip(*pieces, strict=True):
        keys = torch.cat((kv[..., :width], turned[:, None].expand(-1, kv.shape[1], -1)), dim=-1)
        scores_NTL = torch.einsum("tnq,lnq->ntl", q, keys) * attention.spec.scale
        ahead = torch.ones_like(scores_NTL[0], dtype=torch.bool).triu(1)
        scores_NTL.masked_fill_(ahead, -torch.inf)
        outputs.append(torch.einsum("ntl,lnv->tnv", scores_NTL.softmax(-1), kv[..., width:]))
        lses.append(scores_NTL.logsumexp(-1).T)
    return torch.cat(outputs), torch.cat(lses)
