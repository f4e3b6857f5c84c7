"""A decoder layer that norms what attention and MLP make before it is added to the residual.

transformers' FlexOlmoDecoderLayer, whose attention and MLP take the residual as it is, and
AfmoeDecoderLayer, where what goes in is normed too. Shapes: T tokens of the step, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice
from moe.base.deferred_sum import DeferredSum
from workers.attention.kv_cache import LayerCache
from workers.config_json.model_config import ModelConfig
from workers.layers.norm import NORMS, Norm, Normed
from workers.models.attention import Attention
from workers.models.base import MLP, BuildContext, ForwardBatch
from workers.models.mla import LatentAttention


class EndNormLayer(nn.Module):
    """In the place of a `DecoderLayer`; the norm at the end of an MLP is that of a whole sum, so
    all that is left to the next layer is to add it."""

    def __init__(
        self,
        config: ModelConfig,
        build: BuildContext,
        attention: Attention | LatentAttention,
        mlp: MLP,
    ) -> None:
        super().__init__()
        assert config.norms != "before"
        assert config.residual_multiplier == 1

        def norm(*, is_read: bool) -> Norm:
            return NORMS[config.norm](
                config.hidden_size,
                config.rms_norm_eps,
                build.dtype,
                build.device,
                build.context,
                is_read and build.has_fp8,
            )

        self.context = build.context
        self.names = config.names
        self.self_attn = attention
        self.mlp = mlp
        is_both = config.norms == "both"
        self.attention_norm = norm(is_read=True) if is_both else None
        self.mlp_norm = norm(is_read=True) if is_both else None
        self.attention_end_norm = norm(is_read=False)
        self.mlp_end_norm = norm(is_read=False)

    def forward(
        self,
        residual_TH: torch.Tensor,
        update: DeferredSum | None,
        cache: LayerCache,
        batch: ForwardBatch,
    ) -> tuple[torch.Tensor, DeferredSum]:
        """As `DecoderLayer` does."""
        in_eight_bits = self.self_attn.takes_quantized(len(residual_TH))
        normed = self._enter(self.attention_norm, residual_TH, update, in_eight_bits=in_eight_bits)
        update = self.self_attn(normed.rows, cache, batch.attention, normed.quantized)
        residual_TH = batch.attention.pick_drawn(normed.residual, self.context)
        normed = self._enter(
            self.mlp_norm,
            residual_TH,
            self.attention_end_norm.of_sum(update),
            in_eight_bits=self.mlp.takes_quantized(len(residual_TH)),
            router_EH=self.mlp.router_weight,
        )
        update = self.mlp(normed.rows, batch, normed.quantized, normed.logits)
        return normed.residual, self.mlp_end_norm.of_sum(update)

    def _enter(
        self,
        norm: Norm | None,
        residual_TH: torch.Tensor,
        update: DeferredSum | None,
        *,
        in_eight_bits: bool,
        router_EH: torch.Tensor | None = None,
    ) -> Normed:
        """The residual with the update, and what goes in: itself without a norm."""
        if norm is not None:
            return norm.add_for_readers(
                residual_TH, update, in_eight_bits=in_eight_bits, router_EH=router_EH
            )
        if update is not None:
            update.add_to(residual_TH, self.context)
        return Normed(residual_TH, residual_TH)

    def norm_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """As `DecoderLayer` does."""
        names = self.names
        for name, norm in (
            (names.attention_norm, self.attention_norm),
            (names.attention_end_norm, self.attention_end_norm),
            (names.mlp_norm, self.mlp_norm),
            (names.mlp_end_norm, self.mlp_end_norm),
        ):
            if norm is not None:
                yield from norm.checkpoint_slices(f"{prefix}{name}.")
