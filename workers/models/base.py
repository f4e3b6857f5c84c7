"""The contract of an architecture: its arguments, what a rank calls, and its batch.

Owns `Model` and `MLP` (the protocols), `BuildContext` and `ForwardBatch`. Knows no architecture.
Shapes: T tokens of the step, D rows that draw, H hidden, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch

from moe.base.checkpoint_slice import CheckpointSlice
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.fp8_format import Fp8Format
from moe.base.parallel import ParallelConfig
from moe.base.quantized import Quantized
from moe.base.weight_format import WeightFormat
from moe.dispatch import ExpertGroups
from moe.expert_load import ExpertCounters
from workers.attention.kv_cache import KVCache
from workers.attention.layer import AttentionBatch
from workers.attention.layer_groups import LayerGroups
from workers.config_json.quantized_modules import Quantization
from workers.distributed import Groups
from workers.linear_attention.states import StateSizes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """What a model needs to build its share on this rank: process groups, layout, device, sizes.

    Attributes:
        max_positions: rows of the rotary table, the longest context.
        max_tokens: most tokens of a step on one replica.
        context: what Triton kernels share; None for plain torch.
        moe_runner: key of moe.runner.RUNNERS.
        packed_experts: the checkpoint holds a layer's experts in two tensors, as transformers 5's
            own modules do, not in three tensors an expert.
        packed_scales: the same of their scales, where they have any.
        quantization: which weights have fewer bits than ``dtype``; None: none.
    """

    groups: Groups
    expert_groups: ExpertGroups
    parallel: ParallelConfig
    moe_runner: str
    max_positions: int
    max_tokens: int
    context: KernelContext | None
    dtype: torch.dtype
    device: torch.device
    packed_experts: bool = False
    packed_scales: bool = False
    quantization: Quantization | None = None

    @property
    def has_fp8(self) -> bool:
        """Whether there are weights of eight bits."""
        quantization = self.quantization
        return quantization is not None and isinstance(quantization.weight_format, Fp8Format)

    def format_of(self, modules: Iterable[str]) -> WeightFormat | None:
        """The format of modules that are computed as one matrix; None: ``dtype``.

        Raises:
            ValueError: some of them have it and others not.
        """
        return None if self.quantization is None else self.quantization.format_of(modules)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRows:
    """The tokens whose hidden states anyone reads, in as many rows as there are slots.

    Attributes:
        tokens_R: indices into the step's tokens, int32; 0 for padding.
        num_valid: int32 [1]; rows from there on are padding.
    """

    tokens_R: torch.Tensor
    num_valid: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """One step's input on the device.

    Attributes:
        ids_T: token ids, int32; -1 stands for the last token drawn by the token's slot.
        last_token: int32, by slot.
        attention: which tokens belong together, and where they stand.
        max_tokens: most tokens any replica has in this step.
        num_valid: int32 [1]; tokens from there on are padding. None: there is none.
        drawn: behind its attention the last layer goes on with these alone; None: with all.
    """

    ids_T: torch.Tensor
    last_token: torch.Tensor
    attention: AttentionBatch
    max_tokens: int
    num_valid: torch.Tensor | None = None
    drawn: DrawnRows | None = None

    @property
    def of_drawn(self) -> ForwardBatch:
        """As the last layer sees it."""
        if self.drawn is None:
            return self
        return dataclasses.replace(
            self,
            attention=dataclasses.replace(self.attention, drawn_R=self.drawn.tokens_R),
            max_tokens=len(self.drawn.tokens_R),
            num_valid=self.drawn.num_valid,
        )


class Model(Protocol):
    """One rank's share of a decoder; an nn.Module in practice."""

    @property
    def num_kv_heads(self) -> int:
        """KV heads of this rank, the same in every layer."""
        ...

    @property
    def layer_groups(self) -> LayerGroups:
        """Which layers share block tables; the cache and its batches are made for these groups."""
        ...

    def state_sizes(self, num_states: int) -> StateSizes | None:
        """Of the layers that keep a state in place of keys and values; None without any."""
        ...

    @property
    def expert_load(self) -> ExpertCounters | None:
        """Takes the routes of the sparse layers, a row each, in their order; None without any."""
        ...

    @property
    def tied_weights(self) -> frozenset[str]:
        """Names that a checkpoint may hold although another tensor fills the parameter."""
        ...

    def forward(self, batch: ForwardBatch, cache: KVCache) -> torch.Tensor:
        """Last hidden states, normed, ``[T, H]`` or ``[R, H]`` of ``batch.drawn``; the step's keys
        and values go to the cache."""
        ...

    def logits(self, hidden_DH: torch.Tensor) -> torch.Tensor:
        """Logits ``[D, V]`` of the given rows, whole and equal on every rank of the tp group."""
        ...

    def checkpoint_slices(self) -> Iterator[CheckpointSlice]:
        """Every tensor of the checkpoint, those of other ranks without a target."""
        ...


class MLP(Protocol):
    """What stands behind attention in a decoder layer, dense or sparse."""

    @property
    def router_weight(self) -> torch.Tensor | None:
        """A matrix whose products with its rows the norm may make."""
        ...

    def __call__(
        self,
        hidden_TH: torch.Tensor,
        batch: ForwardBatch,
        quantized_TH: Quantized | None = None,
        logits_STE: torch.Tensor | None = None,
    ) -> DeferredSum:
        """What it adds to the residual, a sum to ``[T, H]``.

        If the norm made them, ``quantized_TH`` is ``hidden_TH`` in eight bits and ``logits_STE``,
        where it has a ``router_weight``, are parts of the products with that.
        """
        ...

    def takes_quantized(self, num_tokens: int) -> bool:
        """Whether so many tokens are multiplied in eight bits, by some of its weights at least."""
        ...

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """Its tensors; ``prefix`` ends in ``mlp.``."""
        ...
