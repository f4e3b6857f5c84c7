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
from moe.base.int4_format import Int4Format
from moe.base.quantized import Quantized
from moe.base.weight_format import WeightFormat
from workers.attention.kernels.mla_absorb import Halves, absorb_queries, project_values
from workers.attention.kernels.mla_latent import store_latents
from workers.attention.kernels.mla_new import attend_new
from workers.attention.kv_cache import LayerCache
from workers.attention.latent import kernel_latent_attention, paged_latent_attention
from workers.attention.layer import AttentionBatch
from workers.attention.mla_spec import MlaSpec
from workers.attention.plan import AttentionKind
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
    # Of a step, for which to make keys and values costs more than it spares: a power of two, since
    # warm-ups see one step of each.
    few_tokens = 128

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
        self.kv_b_proj = ColumnParallelLinear(
            spec.kv_lora_rank,
            {"kv_b_proj": kv_rows},
            dtype,
            device,
            build.context,
            _absorbed_format(build, f"{prefix}kv_b_proj"),
        )
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
            attended_TW = self.attend(down_STW, cache, batch, self.context)
        update: DeferredSum = self.o_proj(attended_TW, batch.drawn_R)
        return update

    def takes_quantized(self, num_tokens: int) -> bool:
        """Whether so many tokens are multiplied in eight bits."""
        return self.qkv_a_proj.takes_quantized(num_tokens)

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
        q_TNQ = self.grown(q_TW.unflatten(1, (self.num_heads, -1)), batch)
        q_TNP, q_TNR = q_TNQ.split([spec.qk_nope_head_dim, spec.qk_rope_head_dim], dim=-1)
        keys_NPC, values_NVC = self.absorbed(dtype)
        q_TNC = torch.einsum("tnp,npc->tnc", q_TNP, keys_NPC)
        entries_TE = torch.cat(
            (self.kv_a_layernorm(latent_TC), self.turn(k_TR[:, None], batch)[:, 0]), dim=-1
        )
        found_TNC = paged_latent_attention(
            torch.cat((q_TNC, self.turn(q_TNR, batch)), dim=-1),
            entries_TE,
            cache,
            batch,
            latent_width=spec.kv_lora_rank,
            scale=spec.scale,
        )
        return torch.einsum("tnc,nvc->tnv", found_TNC, values_NVC).flatten(1)

    def attend(
        self,
        down_STW: torch.Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        context: KernelContext,
    ) -> torch.Tensor:
        """All between the first and the last projection by kernels ``[T, N·V]``; many prompt tokens
        meet each other with keys and values of their own."""
        spec, kv_b, T = self.spec, self.kv_b_proj, down_STW.shape[1]
        P, R, C, V = (
            spec.qk_nope_head_dim,
            spec.qk_rope_head_dim,
            spec.kv_lora_rank,
            spec.v_head_dim,
        )
        N, dtype, pdl = self.num_heads, context.dtype, context.pdl

        def take(name: str, *shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return context.workspace.take(name, shape, dtype)

        angles = self.rotary.cos, self.rotary.sin
        halves = entries = None
        if self.makes_keys(batch, T):
            entries = take("latents", T, C), take("turned", T, R)
            lses = (take(f"{name}_lse", T, N, dtype=torch.float32) for name in ("old", "new"))
            halves = Halves(take("q_nope", T, N, P), take("found_new", T, N, V), *lses)
        q_width = self.qkv_a_proj.splits[0]
        has_latent = self.q_b_proj is not None
        latent_TQ = take("q_latent", T, q_width) if has_latent else None
        store_latents(
            down_STW,
            self.kv_a_layernorm.weight,
            spec.norm_eps,
            *angles,
            batch.positions_T,
            batch.slots_T,
            batch.tables,
            cache,
            first=q_width,
            interleaved=spec.rope.interleaved,
            q_norm_Q=self.q_a_layernorm.weight if has_latent else None,
            out_q_TQ=latent_TQ,
            out_entries=entries,
            pdl=pdl,
        )
        q_STW = down_STW[..., :q_width] if self.q_b_proj is None else self.q_b_proj(latent_TQ)
        q_TNE = absorb_queries(
            q_STW,
            kv_b.weight,
            *angles,
            batch.positions_T,
            value_width=V,
            interleaved=spec.rope.interleaved,
            growth=spec.query_growth,
            num_cores=context.num_cores,
            out_TNE=take("q", T, N, C + R),
            halves=halves,
            pdl=pdl,
        )
        old_lse_TN = None
        if halves is not None and entries is not None:
            self._attend_new(q_TNE, halves, *entries, batch, context)
            old_lse_TN = halves.old_lse_TN
        found_TNC = kernel_latent_attention(
            q_TNE, cache, batch, context, latent_width=C, scale=spec.scale, old_lse_TN=old_lse_TN
        )
        return project_values(
            found_TNC,
            kv_b.weight,
            num_cores=context.num_cores,
            out_TW=take("attended", T, N * V),
            halves=halves,
            pdl=pdl,
        )

    def makes_keys(self, batch: AttentionBatch, num_tokens: int) -> bool:
        """Whether the step's tokens get keys and values: as its shape says, not what is in it."""
        has_prompts = batch.plans[AttentionKind(None, self.num_heads)].tiles is not None
        return has_prompts and batch.starts_T is not None and num_tokens > self.few_tokens

    def _attend_new(
        self,
        q_TNE: torch.Tensor,
        halves: Halves,
        latents_TC: torch.Tensor,
        turned_TR: torch.Tensor,
        batch: AttentionBatch,
        context: KernelContext,
    ) -> None:
        """What prompt tokens find among the tokens of this step."""
        assert batch.starts_T is not None
        parts = DeferredSum(self.kv_b_proj(latents_TC).transpose(0, 1))
        attend_new(
            q_TNE,
            parts.total(context.dtype, context),
            turned_TR,
            batch.positions_T,
            batch.starts_T,
            halves,
            first=batch.num_decodes,
            scale=self.spec.scale,
            pdl=context.pdl,
        )

    def grown(self, q_TNQ: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """As the spec's growth says."""
        growth = self.spec.query_growth
        if growth is None:
            return q_TNQ
        periods_T = batch.positions_T // growth.length
        factor_T = 1 + growth.beta * torch.log1p(periods_T.float())
        return q_TNQ * factor_T.to(q_TNQ.dtype)[:, None, None]

    def turn(self, x_TNR: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        """Turned by position, as two halves: scores do not see the order of pairs."""
        if self.spec.rope.interleaved:
            x_TNR = torch.cat((x_TNR[..., 0::2], x_TNR[..., 1::2]), dim=-1)
        return rotate(x_TNR, *self.rotary(batch.positions_T))

    def absorbed(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
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


def _absorbed_format(build: BuildContext, module: str) -> WeightFormat | None:
    """Four bits are not made of it, and on a GPU not read.

    Raises:
        ValueError: a checkpoint has them.
    """
    weight_format = build.format_of([module])
    if not isinstance(weight_format, Int4Format):
        return weight_format
    if weight_format.stored != "plain" and build.context is not None:
        raise ValueError(
            f"{module} has four bits, which attention over latents does not read on a GPU; serve a "
            "checkpoint that leaves it as it is, or use --device cpu"
        )
    return None if weight_format.stored == "plain" else weight_format


def _all_rows(width: int) -> ShardRows:
    """Of a projection that every rank has whole."""
    return ShardRows(width, 0, width)
