"""A gated delta layer's module: projections, convolution, states, gated norm.

Shapes: T tokens of the step, H hidden, N value heads, M key heads (both of this rank), D width of
queries and keys, V of values, C channels of the convolution, W its taps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice, part, whole
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.quantized import Quantized
from workers.attention.layer import AttentionBatch
from workers.config_json.model_config import ModelConfig
from workers.layers.linear import ColumnParallelLinear, RowParallelLinear, ShardRows
from workers.linear_attention.delta_rule import CHUNK
from workers.linear_attention.kernels.decode_delta import decode_delta
from workers.linear_attention.kernels.prefill_delta import PrefillWorkspace, prefill_delta
from workers.linear_attention.plain import DeltaWeights, delta_row
from workers.linear_attention.spec import DeltaSpec
from workers.linear_attention.states import LayerStates, StateSizes
from workers.models.base import BuildContext

Shard = tuple[str, ShardRows]


class DeltaNet(nn.Module):
    """A layer of one rank: a share of the key heads, and the value heads that they serve.

    Args:
        prefix: of the module's name in the checkpoint, ending in a dot.
    """

    def __init__(
        self, spec: DeltaSpec, config: ModelConfig, build: BuildContext, prefix: str
    ) -> None:
        super().__init__()
        groups, dtype, device = build.groups, build.dtype, build.device
        tp, rank = groups.tp_size, groups.tp_rank
        self.spec, self.context, self.eps = spec, build.context, config.rms_norm_eps
        self.num_key_heads, self.num_heads = spec.num_key_heads // tp, spec.num_value_heads // tp
        self.keys = ShardRows.shard(spec.keys_size, rank, tp)
        self.values = ShardRows.shard(spec.values_size, rank, tp)
        self.heads = ShardRows.shard(spec.num_value_heads, rank, tp)
        shards, small = _by_key_head(spec, rank, tp) if spec.by_key_head else self._apart()
        self.in_proj = ColumnParallelLinear(
            config.hidden_size, shards, dtype, device, build.context,
            build.format_of(f"{prefix}{name}" for name in dict(shards)),
        )  # fmt: skip
        self.in_proj_ba = ColumnParallelLinear(
            config.hidden_size, small, dtype, device, build.context, parts="column_parallel_too"
        )
        self.out_proj = RowParallelLinear(
            spec.values_size, config.hidden_size, groups, dtype, device, build.context,
            build.format_of([f"{prefix}out_proj"]),
        )  # fmt: skip
        self.channels = 2 * self.num_key_heads * spec.key_width + self.num_heads * spec.value_width

        def parameter(*shape: int, of: torch.dtype = dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=of, device=device), requires_grad=False)

        self.taps_C1W = parameter(self.channels, 1, spec.taps)
        self.rate_N = parameter(self.num_heads, of=torch.float32)
        self.bias_N = parameter(self.num_heads, of=torch.float32)
        self.norm_V = parameter(spec.value_width)

    def forward(
        self,
        hidden_TH: torch.Tensor,
        states: LayerStates,
        batch: AttentionBatch,
        quantized_TH: Quantized | None = None,
    ) -> DeferredSum:
        """``quantized_TH`` is ``hidden_TH`` in eight bits, if the norm made it."""
        x_STX, ba_STB = self.in_proj(hidden_TH, quantized_TH), self.in_proj_ba(hidden_TH)
        if self.context is None:
            read_TV = self.plain(x_STX[0], ba_STB[0], states, batch)
        else:
            read_TV = self.read(x_STX, ba_STB, states, batch, self.context)
        update: DeferredSum = self.out_proj(read_TV, batch.drawn_R)
        return update

    def read(
        self,
        x_STX: torch.Tensor,
        ba_STB: torch.Tensor,
        states: LayerStates,
        batch: AttentionBatch,
        context: KernelContext,
    ) -> torch.Tensor:
        """What tokens read of their sequences' states, by kernels, in workspace ``[T, N·V]``."""
        assert batch.states is not None
        num_decodes, plan = batch.num_decodes, batch.states
        T = x_STX.shape[1]
        shape = (T, self.num_heads * self.spec.value_width)
        out_TV = context.workspace.take("attended", shape, context.dtype)
        weights = self.taps_C1W[:, 0], self.rate_N, self.bias_N, self.norm_V, states
        num_key_heads, eps, pdl = self.num_key_heads, self.eps, context.pdl
        decodes, others = slice(0, num_decodes), slice(num_decodes, T)
        read_TW = context.workspace.take("delta_read", shape, torch.float32)
        if num_decodes:
            decode_delta(
                x_STX[:, decodes], ba_STB[:, decodes], *weights, plan.sources_T[decodes],
                batch.slots_T[decodes], plan.keeps_T[decodes], batch.positions_T[decodes],
                read_TW[decodes], out=out_TV[decodes], num_key_heads=num_key_heads, eps=eps,
                pdl=pdl,
            )  # fmt: skip
        if plan.chunks_KF is not None and plan.rows_RF is not None:
            assert batch.starts_T is not None
            prefill_delta(
                x_STX[:, others], ba_STB[:, others], *weights, plan.sources_T[others],
                batch.positions_T[others], batch.starts_T[others], plan.chunks_KF, plan.rows_RF,
                self._workspace(read_TW[others], len(plan.chunks_KF), context),
                out=out_TV[others], num_key_heads=num_key_heads, eps=eps,
                num_cores=context.num_cores, pdl=pdl,
            )  # fmt: skip
        return out_TV

    def _workspace(
        self, read_TW: torch.Tensor, num_chunks: int, context: KernelContext
    ) -> PrefillWorkspace:
        N, take, num_tokens = self.num_heads, context.workspace.take, len(read_TW)
        squares = (num_chunks, N, CHUNK, CHUNK)
        return PrefillWorkspace(
            take("delta_convolved", (num_tokens, self.channels), context.dtype),
            take("delta_decay", (num_tokens, N), torch.float32),
            take("delta_beta", (num_tokens, N), torch.float32),
            take("delta_solved", squares, context.dtype),
            take("delta_weights", squares, context.dtype),
            read_TW,
        )

    def state_sizes(self, num_layers: int, num_states: int) -> StateSizes:
        """Of so many layers like this."""
        return StateSizes(
            num_layers=num_layers,
            num_states=num_states,
            num_heads=self.num_heads,
            key_width=self.spec.key_width,
            value_width=self.spec.value_width,
            channels=self.channels,
            taps=self.spec.taps,
            inputs_dtype=self.norm_V.dtype,
        )

    def takes_quantized(self, num_tokens: int) -> bool:
        """Whether so many tokens are multiplied in eight bits, by some of its weights at least."""
        return self.in_proj.takes_quantized(num_tokens)

    def plain(
        self, x_TX: torch.Tensor, ba_TB: torch.Tensor, states: LayerStates, batch: AttentionBatch
    ) -> torch.Tensor:
        """The same ``[T, N·V]`` in plain torch."""
        weights = DeltaWeights(
            taps_CW=self.taps_C1W[:, 0],
            rate_N=self.rate_N,
            bias_N=self.bias_N,
            norm_V=self.norm_V,
            num_key_heads=self.num_key_heads,
            eps=self.eps,
        )
        out_TV = x_TX.new_zeros((len(x_TX), self.num_heads * self.spec.value_width))
        assert batch.states is not None
        rows, start = batch.states.rows, 0
        columns = (rows.sources, rows.targets, rows.keep_positions, rows.keep_states)
        of_rows = zip(*(each.tolist() for each in columns), strict=True)
        for each, length, count in zip(of_rows, batch.lengths, batch.num_tokens, strict=True):
            source, target, keep_position, keep_state = each
            first, stop = length - count, start + count
            if keep_state >= 0:  # the row in two pieces
                middle = start + keep_position - first
                piece = slice(start, middle)
                out_TV[piece] = delta_row(
                    x_TX[piece], ba_TB[piece], weights, states, source, keep_state, first
                )
                if middle == stop:
                    states.copy(keep_state, target)
                start, first, source = middle, keep_position, keep_state
            if start < stop:
                piece = slice(start, stop)
                out_TV[piece] = delta_row(
                    x_TX[piece], ba_TB[piece], weights, states, source, target, first
                )
            start = stop
        return out_TV

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """Its tensors; ``prefix`` is that of the module."""
        yield from self.in_proj.checkpoint_slices(prefix)
        yield from self.in_proj_ba.checkpoint_slices(prefix)
        yield from self.out_proj.checkpoint_slices(f"{prefix}out_proj.")
        yield from self._tap_slices(f"{prefix}conv1d.weight")
        for name, target in (("A_log", self.rate_N), ("dt_bias", self.bias_N)):
            yield part(f"{prefix}{name}", (self.heads.total,), 0, self.heads.start, target)
        yield whole(f"{prefix}norm.weight", self.norm_V)

    def _tap_slices(self, name: str) -> Iterator[CheckpointSlice]:
        """Of queries', keys' and values' channels, in this order."""
        keys, values = self.keys, self.values
        shape = (2 * keys.total + values.total, 1, self.spec.taps)
        sizes = [keys.stop - keys.start] * 2 + [values.stop - values.start]
        starts = (keys.start, keys.total + keys.start, 2 * keys.total + values.start)
        for start, target in zip(starts, self.taps_C1W.split(sizes), strict=True):
            yield part(name, shape, 0, start, target)

    def _apart(self) -> tuple[list[Shard], list[Shard]]:
        """Queries, keys and values in one tensor, gates, betas and decays in others."""
        keys, values, heads = self.keys, self.values, self.heads
        total = 2 * keys.total + values.total
        places = [(0, keys), (keys.total, keys), (2 * keys.total, values)]
        qkv = [
            ("in_proj_qkv", ShardRows(total, before + rows.start, before + rows.stop))
            for before, rows in places
        ]
        return [*qkv, ("in_proj_z", values)], [("in_proj_b", heads), ("in_proj_a", heads)]


def _by_key_head(spec: DeltaSpec, rank: int, tp: int) -> tuple[list[Shard], list[Shard]]:
    """Queries of all of the rank's key heads, then keys, values and gates; betas, then decays: in
    the checkpoint those of one key head stand together."""
    group = spec.num_value_heads // spec.num_key_heads
    key, value = spec.key_width, group * spec.value_width
    share = spec.num_key_heads // tp
    heads = range(rank * share, (rank + 1) * share)
    return (
        _pieces("in_proj_qkvz", (key, key, value, value), heads, spec.num_key_heads),
        _pieces("in_proj_ba", (group, group), heads, spec.num_key_heads),
    )


def _pieces(name: str, sizes: tuple[int, ...], heads: range, num_heads: int) -> list[Shard]:
    """Rows of each part of all heads, part after part."""
    found, size = [], sum(sizes)
    for index, each in enumerate(sizes):
        before = sum(sizes[:index])
        for head in heads:
            start = head * size + before
            found.append((name, ShardRows(num_heads * size, start, start + each)))
    return found
