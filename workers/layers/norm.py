"""RMSNorm and LayerNorm: what they share is where their input comes from and what they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from moe.base.checkpoint_slice import CheckpointSlice, whole
from moe.base.context import KernelContext
from moe.base.deferred_sum import DeferredSum
from moe.base.quantized import GROUP, Quantized, take_quantized
from moe.base.sum_norm import RouterLogits, sum_norm, takes_router


class Normed(NamedTuple):
    """What a norm gives to those behind it.

    Attributes:
        residual: ``[T, H]``, with what was to be added.
        rows: its norm.
        quantized: ``rows`` in eight bits, or None.
        logits: a router's, fp32 parts ``[1, T, E]``, or None.
    """

    residual: torch.Tensor
    rows: torch.Tensor
    quantized: Quantized | None = None
    logits: torch.Tensor | None = None


class Norm(nn.Module):
    """A norm over the last dimension, which takes in what was left to add before.

    Args:
        quantize: readers multiply the norm with weights of eight bits.

    Attributes:
        weight_dtype: None: the model's.
    """

    weight_dtype: torch.dtype | None = None
    has_bias = False

    def __init__(
        self,
        size: int,
        eps: float,
        dtype: torch.dtype,
        device: torch.device,
        context: KernelContext | None = None,
        quantize: bool = False,
    ) -> None:
        super().__init__()
        self.quantize = quantize and size % GROUP == 0 and dtype.itemsize == 2
        self.eps = eps
        self.context = context
        weight = torch.empty(size, dtype=self.weight_dtype or dtype, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias: nn.Parameter | None = None
        if self.has_bias:
            bias = torch.empty(size, dtype=dtype, device=device)
            self.bias = nn.Parameter(bias, requires_grad=False)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """The norm in plain torch."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.context is not None:
            return self._normed(x, DeferredSum.of(x), None)
        return self.plain(x)

    def add(
        self, residual_TH: torch.Tensor, update: DeferredSum
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual with ``update`` added, in place where kernels run, and its norm."""
        if self.context is None:
            residual_TH = residual_TH + update.total(residual_TH.dtype)
            return residual_TH, self(residual_TH)
        return residual_TH, self._normed(residual_TH, update, residual_TH)

    def add_for_readers(
        self,
        residual_TH: torch.Tensor,
        update: DeferredSum | None,
        *,
        in_eight_bits: bool,
        router_EH: torch.Tensor | None = None,
    ) -> Normed:
        """As ``add``, or with nothing to add as ``forward``; and the norm in eight bits where it is
        wanted and readers have weights of them, and a router's logits of few tokens. With those the
        residual is in another place."""
        context = self.context
        if context is None:
            if update is None:
                return Normed(residual_TH, self(residual_TH))
            return Normed(*self.add(residual_TH, update))
        T, H = residual_TH.shape
        out_residual_TH, quantized_TH, router = residual_TH, None, None
        if in_eight_bits and self.quantize:
            quantized_TH = take_quantized(context.workspace, "normed_quantized", (T, H))
        if update is not None and router_EH is not None and takes_router(T, router_EH):
            logits_TE = context.workspace.take("logits", (T, len(router_EH)), torch.float32)
            router = RouterLogits(router_EH, logits_TE)
            out_residual_TH = self._elsewhere(residual_TH, context)
        rows_TH = context.workspace.take("normed", (T, H), residual_TH.dtype)
        self._launch(
            DeferredSum.of(residual_TH) if update is None else update,
            None if update is None else residual_TH,
            rows_TH,
            out_residual_TH,
            quantized_TH,
            router,
        )
        logits_1TE = None if router is None else router.out_TE.unsqueeze(0)
        return Normed(out_residual_TH, rows_TH, quantized_TH, logits_1TE)

    def _elsewhere(self, residual_TH: torch.Tensor, context: KernelContext) -> torch.Tensor:
        """Workspace for a residual that all programs read: of two buffers the one it is not in."""
        first, second = (
            context.workspace.take(name, tuple(residual_TH.shape), residual_TH.dtype)
            for name in ("residual", "residual_too")
        )
        return second if first.data_ptr() == residual_TH.data_ptr() else first

    def of_sum(self, update: DeferredSum) -> DeferredSum:
        """The norm of a sum by itself, which is rounded before, as one part: to be read before the
        next such one is made."""
        if self.context is None:
            return DeferredSum.of(self.plain(update.total(self.weight.dtype)))
        T, _, H = update.parts.shape
        take = self.context.workspace.take
        out_TH = take("end_normed", (T, H), self.weight.dtype)
        self._launch(update, None, out_TH, take("end_sum", (T, H), self.weight.dtype))
        return DeferredSum.of(out_TH)

    def _normed(
        self,
        out_residual_TH: torch.Tensor,
        update: DeferredSum,
        residual_TH: torch.Tensor | None,
    ) -> torch.Tensor:
        assert self.context is not None
        shape = tuple(out_residual_TH.shape)
        out_TH = self.context.workspace.take("normed", shape, out_residual_TH.dtype)
        self._launch(update, residual_TH, out_TH, out_residual_TH)
        return out_TH

    def _launch(
        self,
        update: DeferredSum,
        residual_TH: torch.Tensor | None,
        out_TH: torch.Tensor,
        out_residual_TH: torch.Tensor,
        quantized_TH: Quantized | None = None,
        router: RouterLogits | None = None,
    ) -> None:
        assert self.context is not None
        sum_norm(
            update.parts,
            update.weights,
            residual_TH,
            self.weight,
            self.eps,
            norm_bias_H=self.bias,
            more_TMH=update.unweighted,
            scale=update.scale,
            out_normed=out_TH,
            out_residual=out_residual_TH,
            out_quantized=quantized_TH,
            router=router,
            pdl=self.context.pdl,
        )

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """This layer's tensors; ``prefix`` ends with the layer's own name and a dot."""
        yield whole(f"{prefix}weight", self.weight)
        if self.bias is not None:
            yield whole(f"{prefix}bias", self.bias)


class RMSNorm(Norm):
    """``x / sqrt(mean(x²) + eps) · w``, in fp32, cast before the weight (Zhang & Sennrich, 2019;
    the order of casts is transformers')."""

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == self.weight.dtype == torch.float32:
            return torch.rms_norm(x, self.weight.shape, self.weight, self.eps)
        scaled = torch.rms_norm(x.float(), self.weight.shape, None, self.eps)
        return self.weight * scaled.to(x.dtype)


class RMSNormOfOne(Norm):
    """``x / sqrt(mean(x²) + eps) · (1 + w)``, in fp32, cast once, as Qwen3-Next's layers have it;
    1 + w is held in fp32."""

    weight_dtype = torch.float32

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        return torch.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)

    def checkpoint_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        piece = whole(f"{prefix}weight", self.weight)
        yield dataclasses.replace(piece, convert=lambda weight: 1 + weight.float())


class LayerNorm(Norm):
    """``(x - mean(x)) / sqrt(var(x) + eps) · w + b``, in fp32, cast once (Ba et al., 2016), as
    PhiMoE's layers have it."""

    has_bias = True

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


# By `ModelConfig.norm`.
NORMS: dict[str, type[Norm]] = {
    "rms": RMSNorm,
    "rms_of_one": RMSNormOfOne,
    "layer": LayerNorm,
}
# Of queries and keys, likewise.
HEAD_NORMS: dict[str, type[Norm]] = {**NORMS, "layer": RMSNorm}
