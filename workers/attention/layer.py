"""Attention of a mixed batch over the paged KV cache, in plain torch or by kernels.

Owns which rows are computed together and which kernels take which; knows nothing of projections,
norms or where the batch came from. Shapes: T tokens, S sequences (rows), N query heads, K key/value
heads, D head_dim of queries and keys, V of values.
"""

from __future__ import annotations

import dataclasses

import torch

from moe.base.context import KernelContext
from moe.base.picked_rows import pick_rows
from moe.base.quantized import Quantized
from workers.attention import plain
from workers.attention.kernels.decode_attention import DecodeWorkspace, decode_attention
from workers.attention.kernels.prefill_attention import PrefillWorkspace, prefill_attention
from workers.attention.kv_cache import LayerCache
from workers.attention.plan import AttentionKind, prefill_tiles
from workers.attention.prefill_split import SPLIT_FIELDS
from workers.linear_attention.states import StatePlan

# Decodes are gathered in groups of at most this many context tokens, which bounds the workspace.
_MAX_GATHERED_TOKENS = 1 << 18


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How the kernels divide a step in the layers of one kind.

    Attributes:
        chunks: of attention.plan.plan_decode; None without decodes.
        tiles: of attention.plan.plan_prefill, or of prefill_split.split_tiles; None without
            prefills.
    """

    chunks: torch.Tensor | None
    tiles: torch.Tensor | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBatch:
    """Which tokens belong to which sequences; rows as in StepRequest, decodes first.

    Attributes:
        positions_T: position of each token in its sequence, int32.
        slots_T: slot of each token's sequence, int32; -1 is padding.
        tables: blocks of each slot in the group of the layers that attend, int32 ``[num_slots,
            max_blocks]``; behind a sequence's own, and before what a window's queries may see, any
            valid ids: keys there may be another sequence's, are masked, and finite as all are.
        other_tables: of what all groups share, those of the groups behind the first.
        slots: slot of each row, on the host.
        lengths: context of each row after this step, on the host.
        num_tokens: tokens of each row, on the host.
        num_decodes: leading rows of one token.
        plans: one for each kind of layers; none without kernels.
        finished_SK: of DecodeWorkspace, the same tensor at every step; read by kernels alone.
        finished_CK: of PrefillWorkspace, as above.
        starts_T: position of the first token of each token's row in this step, int32; read by
            kernels over latents alone.
        states: of layers that keep states, for kernels; None without either.
        drawn_R: indices of the tokens whose attention is read, int32; None: all are.
    """

    positions_T: torch.Tensor
    slots_T: torch.Tensor
    tables: torch.Tensor
    slots: list[int]
    lengths: list[int]
    num_tokens: list[int]
    num_decodes: int
    plans: dict[AttentionKind, AttentionPlan] = dataclasses.field(default_factory=dict)
    finished_SK: torch.Tensor | None = None
    finished_CK: torch.Tensor | None = None
    starts_T: torch.Tensor | None = None
    other_tables: tuple[torch.Tensor, ...] = ()
    states: StatePlan | None = None
    drawn_R: torch.Tensor | None = None

    def pick_drawn(self, residual_TH: torch.Tensor, context: KernelContext | None) -> torch.Tensor:
        """The rows ``drawn_R``; all where that is None."""
        if self.drawn_R is None:
            return residual_TH
        return pick_rows(residual_TH, self.drawn_R, context, "picked_residual")

    def of_groups(self) -> list[AttentionBatch]:
        """Of each group of layers, with its tables."""
        others = [dataclasses.replace(self, tables=tables) for tables in self.other_tables]
        return [self, *others]


def paged_attention(
    q_TND: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKV: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    sinks_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Store the batch's keys and values, then attend causally.

    Args:
        scale: what scores are multiplied by.
        window: keys that a query sees, its own included; None: all.
        sinks_N: a score each query head has besides, of no key and not scaled; None: none.

    Returns:
        ``[T, N * V]``.
    """
    block, offset = batch.positions_T // cache.block_size, batch.positions_T % cache.block_size
    blocks_T = batch.tables[batch.slots_T, block].long()
    cache.write(blocks_T * cache.block_size + offset, k_TKD, v_TKV)
    return attend_rows(q_TND, cache, batch, plain.Softmax(scale, window, sinks_N)).flatten(1)


def attend_rows(
    q_TND: torch.Tensor, cache: LayerCache, batch: AttentionBatch, softmax: plain.Softmax
) -> torch.Tensor:
    """Causal attention ``[T, N, V]`` over a cache that holds the batch's keys and values."""
    outputs = []
    for first, last in _decode_groups(batch, softmax.window):
        slots, lengths = batch.slots[first:last], batch.lengths[first:last]
        q_SND = q_TND[first:last]
        outputs.append(plain.decode(q_SND, cache, batch.tables, slots, lengths, softmax))
    start = batch.num_decodes
    for row in range(batch.num_decodes, len(batch.lengths)):
        stop = start + batch.num_tokens[row]
        table_B, length = batch.tables[batch.slots[row]], batch.lengths[row]
        outputs.append(plain.prefill(q_TND[start:stop], cache, table_B, length, softmax))
        start = stop
    empty = q_TND.new_empty((0, q_TND.shape[1], cache.values.shape[3]))
    return torch.cat(outputs) if outputs else empty


def kernel_attention(
    q_TND: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    context: KernelContext,
    kind: AttentionKind,
    *,
    scale: float,
    out: torch.Tensor | Quantized,
    sinks_N: torch.Tensor | None = None,
) -> torch.Tensor | Quantized:
    """As ``paged_attention``, with keys and values that `kernels.qk_rope` has stored, and the
    window of ``kind``, which is one of the batch's.

    Args:
        out: ``[T, N·V]``; rows of no sequence may keep what it holds.

    Returns:
        ``out``.
    """
    T, N, _ = q_TND.shape
    V = cache.values.shape[3]
    plan = batch.plans[kind]
    take = context.workspace.take
    # As the kernels take them.
    rows = out if isinstance(out, Quantized) else out.view(T, N, V)
    decodes = batch.num_decodes
    if decodes:
        assert plan.chunks is not None
        assert batch.finished_SK is not None
        capacity = len(plan.chunks)
        workspace = DecodeWorkspace(
            partials_CNV=take("attention_parts", (capacity, N, V), torch.float32),
            lse_CN=take("attention_lse", (capacity, N), torch.float32),
            finished_SK=batch.finished_SK,
        )
        decode_attention(
            q_TND[:decodes],
            cache,
            batch.tables,
            plan.chunks,
            scale=scale,
            sinks_N=sinks_N,
            out=rows.first(decodes) if isinstance(rows, Quantized) else rows[:decodes],
            workspace=workspace,
            pdl=context.pdl,
        )
    if plan.tiles is not None:
        prefill_attention(
            q_TND,
            cache,
            batch.tables,
            plan.tiles,
            scale=scale,
            window=kind.window,
            sinks_N=sinks_N,
            out=rows,
            workspace=prefill_workspace(batch, plan.tiles, T, cache.values.shape[2:], context),
            pdl=context.pdl,
        )
    return out


def prefill_workspace(
    batch: AttentionBatch,
    tiles: torch.Tensor,
    num_tokens: int,
    values: tuple[int, ...],
    context: KernelContext,
) -> PrefillWorkspace | None:
    """For so many key heads and such a width of what each finds; None without split tiles."""
    if tiles.shape[1] != SPLIT_FIELDS:
        return None
    assert batch.finished_CK is not None
    kv_heads, v_head_dim = values
    take = context.workspace.take
    shape = (len(batch.finished_CK), kv_heads, prefill_tiles(num_tokens).block_m, v_head_dim)
    return PrefillWorkspace(
        partials_CKMV=take("attention_tile_parts", shape, torch.float32),
        lse_CKM=take("attention_tile_lse", shape[:3], torch.float32),
        finished_CK=batch.finished_CK,
    )


def _decode_groups(batch: AttentionBatch, window: int | None = None) -> list[tuple[int, int]]:
    """Ranges of decode rows whose padded contexts fit the workspace."""
    if not batch.num_decodes:
        return []
    longest = max(batch.lengths[: batch.num_decodes])
    size = max(1, _MAX_GATHERED_TOKENS // (longest if window is None else min(longest, window)))
    return [
        (first, min(first + size, batch.num_decodes)) for first in range(0, batch.num_decodes, size)
    ]
