"""Qwen3, dense: and the decoder that Qwen3-MoE shares with it.

Plain modules with the checkpoint's names. Shapes: T tokens of the step, H hidden, N query heads,
K key/value heads (both of this rank), D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.quantized import Quantized
from moe.base.swiglu import swiglu
from moe.expert_load import ExpertCounters
from workers.attention.kernels.qk_rope import qk_rope
from workers.attention.kv_cache import KVCache, LayerCache
from workers.attention.layer import AttentionBatch, kernel_attention, paged_attention
from workers.attention.plan import AttentionKind
from workers.layers.embedding import Embedding, LMHead
from workers.layers.linear import ColumnParallelLinear, RowParallelLinear, ShardRows
from workers.layers.norm import RMSNorm
from workers.layers.rotary import RotaryEmbedding, rotate
from workers.model_config import ModelConfig
from workers.models.base import MLP, BuildContext, ForwardBatch

MakeMLP = Callable[[int], MLP]


class Qwen3Attention(nn.Module):
    """Grouped-query attention with RMSNorm on each head of q and k. KV heads are replicated when
    there are fewer than ranks: head = rank // (tp / kv). ``prefix`` ends in ``self_attn.``."""

    def __init__(self, config: ModelConfig, build: BuildContext, prefix: str) -> None:
        super().__init__()
        groups, dtype, device = build.groups, build.dtype, build.device
        self.context = context = build.context
        size, head_dim, total_kv = config.hidden_size, config.head_dim, config.num_kv_heads
        replicas = max(1, groups.tp_size // total_kv)
        kv_rank, kv_ranks = groups.tp_rank // replicas, groups.tp_size // replicas
        self.head_dim = head_dim
        q_rows = ShardRows.shard(config.num_heads * head_dim, groups.tp_rank, groups.tp_size)
        kv_rows = ShardRows.shard(total_kv * head_dim, kv_rank, kv_ranks)
        self.num_heads = config.num_heads // groups.tp_size
        self.num_kv_heads = total_kv // kv_ranks
        self.kind, self.scale = AttentionKind(None, self.num_heads), head_dim**-0.5
        shards = {"q_proj": q_rows, "k_proj": kv_rows, "v_proj": kv_rows}
        weight_format = build.format_of(f"{prefix}{name}" for name in shards)
        self.qkv_proj = ColumnParallelLinear(size, shards, dtype, device, context, weight_format)
        weight_format = build.format_of([f"{prefix}o_proj"])
        self.o_proj = RowParallelLinear(
            config.num_heads * head_dim, size, groups, dtype, device, context, weight_format
        )
        self.q_norm = RMSNorm(head_dim, config.rms_norm_eps, dtype, device)
        self.k_norm = RMSNorm(head_dim, config.rms_norm_eps, dtype, device)

    def forward(
        self,
        hidden_TH: torch.Tensor,
        rotary: RotaryEmbedding,
        cache: LayerCache,
        batch: AttentionBatch,
        quantized_TH: Quantized | None = None,
    ) -> DeferredSum:
        """``quantized_TH`` is ``hidden_TH`` in eight bits, if the norm made it."""
        qkv_STW = self.qkv_proj(hidden_TH, quantized_TH)
        if self.context is None:
            attended = self._plain(qkv_STW[0], rotary, cache, batch)
        else:
            attended = self._kernels(qkv_STW, rotary, cache, batch, self.context)
        update: DeferredSum = self.o_proj(attended)
        return update

    def _plain(
        self,
        qkv_TW: torch.Tensor,
        rotary: RotaryEmbedding,
        cache: LayerCache,
        batch: AttentionBatch,
    ) -> torch.Tensor:
        """Norms, rotation and attention in plain torch ``[T, N·D]``."""
        q_TND, k_TKD, v_TKD = qkv_TW.unflatten(1, (-1, self.head_dim)).split(
            [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1
        )
        angles = rotary(batch.positions_T)
        q_TND = rotate(self.q_norm(q_TND), *angles)
        k_TKD = rotate(self.k_norm(k_TKD), *angles)
        return paged_attention(q_TND, k_TKD, v_TKD, cache, batch, scale=self.scale)

    def _kernels(
        self,
        qkv_STW: torch.Tensor,
        rotary: RotaryEmbedding,
        cache: LayerCache,
        batch: AttentionBatch,
        context: KernelContext,
    ) -> torch.Tensor:
        """Norms, rotation and new cache entries in one kernel, then attention ``[T, N·D]``."""
        shape = (qkv_STW.shape[1], self.num_heads, self.head_dim)
        q_TND = qk_rope(
            qkv_STW,
            self.q_norm.weight,
            self.k_norm.weight,
            self.q_norm.eps,
            rotary.cos,
            rotary.sin,
            batch.positions_T,
            batch.slots_T,
            batch.tables,
            cache,
            out_q_TND=context.workspace.take("q", shape, self.q_norm.weight.dtype),
            pdl=context.pdl,
        )
        return kernel_attention(q_TND, cache, batch, context, self.kind, scale=self.scale)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        yield from self.qkv_proj.checkpoint_slices(prefix)
        for name in ("o_proj", "q_norm", "k_norm"):
            yield from getattr(self, name).checkpoint_slices(f"{prefix}{name}.")


class Qwen3MLP(nn.Module):
    """``down(silu(gate x) * up x)``, I / tp wide on each rank. ``prefix`` ends in ``mlp.``."""

    def __init__(self, config: ModelConfig, build: BuildContext, prefix: str) -> None:
        super().__init__()
        groups, dtype, device = build.groups, build.dtype, build.device
        self.context = context = build.context
        rows = ShardRows.shard(config.intermediate_size, groups.tp_rank, groups.tp_size)
        shards = {"gate_proj": rows, "up_proj": rows}
        weight_format = build.format_of(f"{prefix}{name}" for name in shards)
        self.gate_up_proj = ColumnParallelLinear(
            config.hidden_size, shards, dtype, device, context, weight_format
        )
        weight_format = build.format_of([f"{prefix}down_proj"])
        self.down_proj = RowParallelLinear(
            config.intermediate_size,
            config.hidden_size,
            groups,
            dtype,
            device,
            context,
            weight_format,
        )

    def forward(
        self, hidden_TH: torch.Tensor, batch: ForwardBatch, quantized_TH: Quantized | None = None
    ) -> DeferredSum:
        """Each token by itself, padding too: nothing of the batch is read."""
        partials_STW: torch.Tensor = self.gate_up_proj(hidden_TH, quantized_TH)
        inner_TI: torch.Tensor | Quantized
        if self.context is None:
            gate, up = partials_STW[0].chunk(2, dim=-1)
            inner_TI = F.silu(gate) * up
        else:
            inner_TI = self.down_proj.rows(len(hidden_TH), "inner")
            swiglu(partials_STW, out_TI=inner_TI, pdl=self.context.pdl)
        update: DeferredSum = self.down_proj(inner_TI)
        return update

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        yield from self.gate_up_proj.checkpoint_slices(prefix)
        yield from self.down_proj.checkpoint_slices(f"{prefix}down_proj.")


class Qwen3DecoderLayer(nn.Module):
    """Pre-norm attention and MLP. What either makes is added to the residual by the next norm."""

    def __init__(self, config: ModelConfig, build: BuildContext, mlp: MLP, prefix: str) -> None:
        super().__init__()
        norm = (
            config.hidden_size,
            config.rms_norm_eps,
            build.dtype,
            build.device,
            build.context,
            build.has_fp8,
        )
        self.self_attn = Qwen3Attention(config, build, f"{prefix}self_attn.")
        self.mlp = mlp
        self.input_layernorm = RMSNorm(*norm)
        self.post_attention_layernorm = RMSNorm(*norm)

    def forward(
        self,
        residual_TH: torch.Tensor,
        update: DeferredSum | None,
        rotary: RotaryEmbedding,
        cache: LayerCache,
        batch: ForwardBatch,
    ) -> tuple[torch.Tensor, DeferredSum]:
        """The residual stream and what this layer's MLP adds to it; ``update`` is that of the layer
        before."""
        norm = self.input_layernorm.add_quantized
        residual_TH, hidden_TH, quantized_TH = norm(residual_TH, update)
        update = self.self_attn(hidden_TH, rotary, cache, batch.attention, quantized_TH)
        norm = self.post_attention_layernorm.add_quantized
        residual_TH, hidden_TH, quantized_TH = norm(residual_TH, update)
        return residual_TH, self.mlp(hidden_TH, batch, quantized_TH)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        yield from self.self_attn.checkpoint_slices(f"{prefix}self_attn.")
        yield from self.mlp.checkpoint_slices(f"{prefix}mlp.")
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield from getattr(self, name).checkpoint_slices(f"{prefix}{name}.")


class Qwen3ForCausalLM(nn.Module):
    """The whole decoder.

    Args:
        make_mlp: the MLP of a layer by its index; the dense one by default.
        expert_load: takes the routes of those MLPs that are mixtures.
    """

    layers: Sequence[Qwen3DecoderLayer]

    def __init__(
        self,
        config: ModelConfig,
        build: BuildContext,
        make_mlp: MakeMLP | None = None,
        expert_load: ExpertCounters | None = None,
    ) -> None:
        super().__init__()
        dtype, device, context = build.dtype, build.device, build.context
        prefixes = [f"model.layers.{index}." for index in range(config.num_layers)]
        make_mlp = make_mlp or (lambda layer: Qwen3MLP(config, build, f"{prefixes[layer]}mlp."))
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype, device, context)
        layers = nn.ModuleList(
            Qwen3DecoderLayer(config, build, make_mlp(index), prefix)
            for index, prefix in enumerate(prefixes)
        )
        self.layers = cast(Sequence[Qwen3DecoderLayer], layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device, context)
        self.rotary = RotaryEmbedding(config.rope, build.max_positions, device)
        tied = self.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = LMHead(
            config.vocab_size, config.hidden_size, tied, build.groups, dtype, device, context
        )
        self.expert_load = expert_load
        # A tied head is sometimes saved all the same.
        self.tied_weights = frozenset({"lm_head.weight"} if config.tie_word_embeddings else ())

    @property
    def num_kv_heads(self) -> int:
        """KV heads of this rank."""
        return self.layers[0].self_attn.num_kv_heads

    def forward(self, batch: ForwardBatch, cache: KVCache) -> torch.Tensor:
        """Last hidden states ``[T, H]``, normed."""
        self.rotary.cover(max(batch.attention.lengths, default=0))
        residual_TH = self.embed_tokens(batch.ids_T, batch.attention.slots_T, batch.last_token)
        update = None
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            residual_TH, update = layer(residual_TH, update, self.rotary, layer_cache, batch)
        assert update is not None
        return self.norm.add(residual_TH, update)[1]

    def logits(self, hidden_DH: torch.Tensor) -> torch.Tensor:
        """Logits ``[D, V]`` for the rows given, whole on every rank."""
        logits_DV: torch.Tensor = self.lm_head(hidden_DH)
        return logits_DV

    def checkpoint_slices(self) -> Iterator[CheckpointSlice]:
        """Every tensor of the checkpoint, those of other ranks without a target."""
        yield from self.embed_tokens.checkpoint_slices("model.embed_tokens.")
        for index, layer in enumerate(self.layers):
            yield from layer.checkpoint_slices(f"model.layers.{index}.")
        yield from self.norm.checkpoint_slices("model.norm.")
        yield from self.lm_head.checkpoint_slices("lm_head.")
