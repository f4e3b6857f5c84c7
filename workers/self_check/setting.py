"""What the checks of a rank share: its kernels, its layout, the steps they are made for.

Owns `Setting` and made-up rows. Knows no check. T rows, K columns.
"""

from __future__ import annotations

import dataclasses

import torch

from moe.base.context import KernelContext
from moe.base.parallel import ParallelConfig
from moe.base.quantize import FP8
from moe.base.quantized import GROUP, Quantized
from moe.layer import SparseMoeBlock
from workers.attention.kv_cache import CacheSizes
from workers.layers.norm import Norm
from workers.models.attention import Attention
from workers.models.dense_mlp import DenseMLP
from workers.models.mla import LatentAttention
from workers.step.batch import BatchBuilder

# Rows of steps: decodes by a matrix-vector kernel, by few rows and by many, and a prefill.
_DECODES = (1, 8, 64)
_PREFILL = 1024

_LARGEST = torch.finfo(FP8).max
_LARGEST_EVERY = 32  # columns
_SPREAD, _SCALE = 120.0, 2.0**-7  # of made-up rows, before and after e4m3: about 1 in the mean


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """
    Attributes:
        norm: one of the residual stream.
        attention: a layer's.
        mlp: a layer's mixture of experts if there is one, else a dense MLP.
        router_EH: of ``mlp``, if the norm before it makes the logits of few tokens.
        builder: stages the made-up steps; their sequences take its slots.
        sizes: of the cache that serves.
    """

    context: KernelContext
    parallel: ParallelConfig
    max_tokens: int
    max_positions: int
    norm: Norm
    attention: Attention | LatentAttention
    mlp: SparseMoeBlock | DenseMLP
    router_EH: torch.Tensor | None
    builder: BatchBuilder
    sizes: CacheSizes

    @property
    def device(self) -> torch.device:
        """The rank's."""
        return self.context.workspace.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's."""
        return self.context.dtype

    @property
    def decodes(self) -> list[int]:
        """Sizes of decodes, ascending."""
        return sorted({min(size, self.builder.num_slots) for size in _DECODES})

    @property
    def prefill(self) -> int:
        """Tokens of a step with prompts."""
        return min(_PREFILL, self.max_tokens)

    @property
    def steps(self) -> list[int]:
        """Tokens of all steps."""
        return sorted({*self.decodes, self.prefill})

    def rows(self, num_rows: int, columns: int) -> torch.Tensor:
        """Made-up rows [T,K] of about 1 in the mean, which eight bits hold as they are: they are
        e4m3 numbers times a power of two, and any 32 columns have the largest of them."""
        generator = torch.Generator(self.device).manual_seed(columns)
        shape = num_rows, columns
        x_TK = torch.randn(shape, generator=generator, device=self.device) * _SPREAD
        x_TK = x_TK.clamp_(-_LARGEST, _LARGEST).to(FP8).float()
        x_TK[:, ::_LARGEST_EVERY] = _LARGEST * (1 - 2 * (x_TK[:, ::_LARGEST_EVERY] < 0).float())
        return (x_TK * _SCALE).to(self.dtype)

    def quantized(self, rows_TK: torch.Tensor, *, wanted: bool) -> Quantized | None:
        """`rows` of eight bits, where the norm before would make them if they are wanted."""
        return self.eight_bits(rows_TK) if wanted and self.norm.quantize else None

    def eight_bits(self, rows_TK: torch.Tensor) -> Quantized:
        """`rows` exactly."""
        T, columns = rows_TK.shape
        values = (rows_TK.float() / _SCALE).to(FP8)
        return Quantized(
            values, values.new_full((T, columns // GROUP), _SCALE, dtype=torch.float32), GROUP
        )
