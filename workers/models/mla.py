"""Multi-head latent attention as a layer's module (DeepSeek-AI, 2024, DeepSeek-V2).

A token's keys and values are made of one latent, which is all that the cache holds of it, beside
the turned part of its keys. The matrix that makes them is absorbed: its rows of keys into the
queries, its rows of values into what attention found. Each rank has some of the query heads, and
all of the cache. Shapes: T tokens of the step, H hidden, N query heads of this rank, P and R the
parts of a query without and with a position, C width of a latent, E = C + R, V of a value.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.quantized import Quantized
from workers.attention.kernels.mla_absorb import absorb_queries, project_values
from workers.attention.kernels.mla_latent import store_latents
from workers.attention.kv_cache import LayerCache
from workers.attention.latent import kernel_latent_attention, paged_latent_attention
from workers.attention.layer import AttentionBatch
from workers.attention.mla_spec import MlaSpec
from workers.layers.linear import ColumnParallelLinear, RowParallelLinear, ShardRows
from workers.layers.norm import RMSNorm
from workers.layers.rotary import RotaryEmbedding, rotate
from workers.models.base import BuildContext


class LatentAttention(nn.Module):
    """Attention of one layer on this rank, with the checkpoint's names.

    Args:
        rotary: of ``spec.rope``; layers of the same share it.
        prefix: of the module's name in the checkpoint, ending in a dot.
    """

    num_kv_heads = 1

    def __init__(
        self,
        spec: MlaSpec,
        hidden_size: int,
        build: BuildContext,
        rotary: RotaryEmbedding,
        prefix: str,
    ) -> None:
        super().__init__()
        groups, dtype, device = build.groups, build.dtype, build.device
        self.spec, self.rotary, self.context = spec, rotary, build.context
        self.num_heads = spec.num_heads // groups.tp_size

        def column(in_features: int, shards: dict[str, ShardRows]) -> ColumnParallelLinear:
            weight_format = build.format_of(f"{prefix}{name}" for name in shards)
            return ColumnParallelLinear(
                in_features, shards, dtype, device, build.context, weight_format
            )

        def share(width: int) -> ShardRows:
            return ShardRows.shard(spec.num_heads * width, groups.tp_rank, groups.tp_size)

        entry, q_rows = _all_rows(spec.entry_width), share(spec.query_width)
        self.q_b_proj: ColumnParallelLinear | None = None
        if spec.q_lora_rank is None:
            shards = {"q_proj": q_rows, "kv_a_proj_with_mqa": entry}
        else:
            shards = {"q_a_proj": _all_rows(spec.q_lora_rank), "kv_a_proj_with_mqa": entry}
            self.q_a_layernorm = RMSNorm(spec.q_lora_rank, spec.norm_eps, dtype, device)
            self.q_b_proj = column(spec.q_lora_rank, {"q_b_proj": q_rows})
        self.qkv_a_proj = column(hidden_size, shards)
        self.kv_a_layernorm = RMSNorm(spec.kv_lora_rank, spec.norm_eps, dtype, device)
        kv_rows = share(spec.qk_nope_head_dim + spec.v_head_dim)
        self.kv_b_proj = column(spec.kv_lora_rank, {"kv_b_proj": kv_rows})
        weight_format = build.format_of([f"{prefix}o_proj"])
        self.o_proj = RowParallelLinear(
            spec.num_heads * spec.v_head_dim,
            hidden_size,
            groups,
            dtype,
            device,
            build.context,
            weight_format,
        )

    def forward(
        self,
        hidden_TH: torch.Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        quantized_TH: Quantized | None = None,
    ) -> DeferredSum:
        """``quantized_TH`` is ``hidden_TH`` in eight bits, if the norm made it."""
        down_STW = self.qkv_a_proj(hidden_TH, quantized_TH)
        if self.context is None:
            attended_TW = self._plain(down_STW[0], cache, batch)
        else:
            attended_TW = self._kernels(down_STW, cache, batch, self.context)
        update: DeferredSum = self.o_proj(attended_TW)
        return update

    def _plain(
        self, down_TW: torch.Tensor, cache: LayerCache, batch: AttentionBatch
    ) -> torch.Tensor:
        """All between the first and the last projection in plain torch ``[T, N·V]``."""
        spec, dtype = self.spec, down_TW.dtype
        q_TW, latent_TC, k_TR = down_TW.split(
            [self.qkv_a_proj.splits[0], spec.kv_lora_rank, spec.qk_rope_head_dim], dim=1
        )
        if self.q_b_proj is not None:
            q_TW = self.q_b_proj(self.q_a_layernorm(q_TW))[0]
        q_TNQ = q_TW.unflatten(1, (self.num_heads, -1))
        if (growth := spec.query_growth) is not None:
            periods_T = batch.positions_T // growth.length
            factor_T = 1 + growth.beta * torch.log1p(periods_T.float())
            q_TNQ = q_TNQ * factor_T.to(dtype)[:, None, None]
        q_TNP, q_TNR = q_TNQ.split([spec.qk_nope_head_dim, spec.qk_rope_head_dim], dim=-1)
        keys_NPC, values_NVC = self._absorbed(dtype)
        q_TNC = torch.einsum("tnp,npc->tnc", q_TNP, keys_NPC)
        entries_TE = torch.cat(
            (self.kv_a_layernorm(latent_TC), self._turn(k_TR[:, None], batch)[:, 0]), dim=-1
        )
        found_TNC = paged_latent_attention(
            torch.cat((q_TNC, self._turn(q_TNR, batch)), dim=-1),
            entries_TE,
            cache,
            batch,
            latent_width=spec.kv_lora_rank,
            scale=spec.scale,
        )
        return torch.einsum("tnc,nvc->tnv", found_TNC, values_NVC).flatten(1)

    def _kernels(
        self,
        down_STW: torch.Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        context: KernelContext,
    ) -> torch.Tensor:
        """As `_plain`."""
        spec, weight, rotary = self.spec, self.kv_b_proj.weight, self.rotary
        take, T = context.workspace.take, down_STW.shape[1]
        q_width = self.qkv_a_proj.splits[0]
        has_latent = self.q_b_proj is not None
        latent_TQ = take("q_latent", (T, q_width), context.dtype) if has_latent else None
        store_latents(
            down_STW,
            self.kv_a_layernorm.weight,
            spec.norm_eps,
            rotary.cos,
            rotary.sin,
            batch.positions_T,
            batch.slots_T,
            batch.tables,
            cache,
            first=q_width,
            interleaved=spec.rope.interleaved,
            q_norm_Q=self.q_a_layernorm.weight if has_latent else None,
            out_q_TQ=latent_TQ,
            pdl=context.pdl,
        )
        q_STW = down_STW[..., :q_width] if self.q_b_proj is None else self.q_b_proj(latent_TQ)
        q_TNE = absorb_queries(
            q_STW,
            weight,
            rotary.cos,
            rotary.sin,
            batch.positions_T,
            value_width=spec.v_head_dim,
            interleaved=spec.rope.interleaved,
            growth=spec.query_growth,
            num_cores=context.num_cores,
            out_TNE=take("q", (T, self.num_heads, spec.entry_width), context.dtype),
            pdl=context.pdl,
        )
        found_TNC = kernel_latent_attention(
            q_TNE, cache, batch, context, latent_width=spec.kv_lora_rank, scale=spec.scale
        )
        return project_values(
            found_TNC,
            weight,
            num_cores=context.num_cores,
            out_TW=take("attended", (T, self.num_heads * spec.v_head_dim), context.dtype),
            pdl=context.pdl,
        )

    def _turn(self, x_TNR: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """Turned by position, as two halves: scores do not see the order of pairs."""
        if self.spec.rope.interleaved:
            x_TNR = torch.cat((x_TNR[..., 0::2], x_TNR[..., 1::2]), dim=-1)
        return rotate(x_TNR, *self.rotary(batch.positions_T))

    def _absorbed(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """What makes keys and values of a latent, by head: ``[N, P, C]``, ``[N, V, C]``."""
        by_head = self.kv_b_proj.weight.plain(dtype).unflatten(0, (self.num_heads, -1))
        keys_NPC, values_NVC = by_head.split(
            [self.spec.qk_nope_head_dim, self.spec.v_head_dim], dim=1
        )
        return keys_NPC, values_NVC

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        yield from self.qkv_a_proj.checkpoint_slices(prefix)
        yield from self.kv_b_proj.checkpoint_slices(prefix)
        if self.q_b_proj is not None:
            yield from self.q_b_proj.checkpoint_slices(prefix)
            yield from self.q_a_layernorm.checkpoint_slices(f"{prefix}q_a_layernorm.")
        yield from self.kv_a_layernorm.checkpoint_slices(f"{prefix}kv_a_layernorm.")
        yield from self.o_proj.checkpoint_slices(f"{prefix}o_proj.")


def _all_rows(width: int) -> ShardRows:
    """Of a projection that every rank has whole."""
    return ShardRows(width, 0, width)
