"""Grouped-query attention as a layer's module: projections, norms, rotation, paged attention.

Shapes: T tokens of the step, H hidden, N query heads, K key/value heads (both of this rank), D
head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice, part
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.quantized import GROUP, Quantized
from workers.attention.kv_cache import LayerCache
from workers.attention.layer import AttentionBatch, kernel_attention, paged_attention
from workers.attention.plan import AttentionKind
from workers.attention.spec import AttentionSpec
from workers.config_json.model_config import ModelConfig
from workers.layers.linear import ColumnParallelLinear, RowParallelLinear, ShardRows
from workers.layers.norm import HEAD_NORMS
from workers.layers.rotary import RotaryEmbedding
from workers.models.base import BuildContext
from workers.models.heads import QkvHeads
from workers.models.output_gate import OutputGate
from workers.models.query_rows import query_shards


class Attention(nn.Module):
    """Attention of one layer on this rank. KV heads are replicated when there are fewer than ranks:
    head = rank // (tp / kv).

    Args:
        rotary: of ``spec.rope``; layers of the same share it. None where that is.
        prefix: of the module's name in the checkpoint, ending in a dot.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        config: ModelConfig,
        build: BuildContext,
        rotary: RotaryEmbedding | None,
        prefix: str,
    ) -> None:
        super().__init__()
        groups, dtype, device = build.groups, build.dtype, build.device
        self.spec = spec
        self.names = config.names
        self.groups = groups
        self.context = context = build.context
        size, head_dim, total_kv = config.hidden_size, spec.head_dim, spec.num_kv_heads
        replicas = max(1, groups.tp_size // total_kv)
        kv_rank, kv_ranks = groups.tp_rank // replicas, groups.tp_size // replicas
        self.head_dim = head_dim
        q_rows = ShardRows.shard(spec.num_heads * head_dim, groups.tp_rank, groups.tp_size)
        k_rows = ShardRows.shard(total_kv * head_dim, kv_rank, kv_ranks)
        v_rows = ShardRows.shard(total_kv * spec.v_head_dim, kv_rank, kv_ranks)
        self.num_heads = spec.num_heads // groups.tp_size
        self.num_kv_heads = total_kv // kv_ranks
        self.kind = AttentionKind(spec.window_within(build.max_positions), self.num_heads)
        heads = range(self.num_heads * groups.tp_rank, self.num_heads * (groups.tp_rank + 1))
        shards = [*query_shards(spec, heads), ("k_proj", k_rows), ("v_proj", v_rows)]
        weight_format = build.format_of(f"{prefix}{name}" for name in dict(shards))
        self.qkv_proj = ColumnParallelLinear(
            size, shards, dtype, device, context, weight_format, has_bias=spec.qkv_bias
        )
        self.heads = QkvHeads(
            spec,
            build,
            config.rms_norm_eps,
            HEAD_NORMS[config.norm],
            rotary,
            q_rows,
            k_rows,
            counts_keys=groups.tp_rank % replicas == 0,
        )
        weight_format = build.format_of([f"{prefix}o_proj"])
        self.o_proj = RowParallelLinear(
            spec.num_heads * spec.v_head_dim,
            size,
            groups,
            dtype,
            device,
            context,
            weight_format,
            has_bias=spec.o_bias,
        )
        self.gate: OutputGate | None = None
        if spec.gate != "none":
            self.gate = OutputGate(spec, size, build, prefix)
        self.sinks: nn.Parameter | None = None
        if spec.sinks:
            sinks = torch.empty(self.num_heads, dtype=torch.float32, device=device)
            self.sinks = nn.Parameter(sinks, requires_grad=False)

    def forward(
        self,
        hidden_TH: torch.Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        quantized_TH: Quantized | None = None,
    ) -> DeferredSum:
        """``quantized_TH`` is ``hidden_TH`` in eight bits, if the norm made it."""
        qkv_STW = self.qkv_proj(hidden_TH, quantized_TH)
        attended: torch.Tensor | Quantized
        if self.context is None:
            attended = self._plain(qkv_STW[0], cache, batch)
        else:
            q_TND = self.heads(qkv_STW, self.qkv_proj.bias, cache, batch, self.context)
            attended = self.attend(q_TND, cache, batch, self.context)
        if self.gate is not None:
            assert isinstance(attended, torch.Tensor)
            attended = self.gate(attended, hidden_TH, quantized_TH)
        update: DeferredSum = self.o_proj(attended, batch.drawn_R)
        return update

    def takes_quantized(self, num_tokens: int) -> bool:
        """Whether so many tokens are multiplied in eight bits, by some of its weights at least."""
        if self.gate is not None and self.gate.g_proj.takes_quantized(num_tokens):
            return True
        return self.qkv_proj.takes_quantized(num_tokens)

    def _plain(
        self, qkv_TW: torch.Tensor, cache: LayerCache, batch: AttentionBatch
    ) -> torch.Tensor:
        """Norms, rotation and attention in plain torch ``[T, N·V]``."""
        heads = self.heads.plain(qkv_TW, self.qkv_proj.bias, batch.positions_T)
        scale, window = self.spec.scale, self.kind.window
        return paged_attention(*heads, cache, batch, scale=scale, window=window, sinks_N=self.sinks)

    def attend(
        self,
        q_TND: torch.Tensor,
        cache: LayerCache,
        batch: AttentionBatch,
        context: KernelContext,
    ) -> torch.Tensor | Quantized:
        """Attention by kernels, given what `heads` made, in `rows`."""
        return kernel_attention(
            q_TND,
            cache,
            batch,
            context,
            self.kind,
            scale=self.spec.scale,
            sinks_N=self.sinks,
            out=self.rows(len(q_TND), context, picked=batch.drawn_R is not None),
        )

    def rows(
        self, num_tokens: int, context: KernelContext, *, picked: bool = False
    ) -> torch.Tensor | Quantized:
        """Workspace ``[T, N·V]`` for what attention finds; of eight bits where the output
        projection takes such, all of them, no gate is before it and heads are whole groups."""
        if self.gate is None and self.spec.v_head_dim % GROUP == 0 and not picked:
            return self.o_proj.rows(num_tokens, "attended")
        shape = (num_tokens, self.num_heads * self.spec.v_head_dim)
        return context.workspace.take("attended", shape, context.dtype)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        yield from self.qkv_proj.checkpoint_slices(prefix)
        yield from self.o_proj.checkpoint_slices(f"{prefix}o_proj.")
        if self.gate is not None:
            yield from self.gate.checkpoint_slices(prefix)
        norms = (f"{prefix}{self.names.q_norm}.", f"{prefix}{self.names.k_norm}.")
        yield from self.heads.checkpoint_slices(*norms)
        if self.sinks is not None:
            total, start = self.spec.num_heads, self.groups.tp_rank * self.num_heads
            yield part(f"{prefix}sinks", (total,), 0, start, self.sinks)
