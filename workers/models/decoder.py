"""The decoder of every family: what is different is in `ModelConfig`.

Shapes: T tokens of the step, D rows that draw, H hidden, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import nn

from moe.base.checkpoint_slice import CheckpointSlice
from moe.base.deferred_sum import DeferredSum
from moe.expert_load import ExpertCounters
from workers.attention.kv_cache import KVCache, LayerCache
from workers.attention.layer_groups import LayerGroups
from workers.attention.mla_spec import MlaSpec
from workers.config_json.model_config import ModelConfig
from workers.layers.embedding import Embedding, LMHead
from workers.layers.norm import NORMS
from workers.layers.rotary import RotaryEmbedding
from workers.linear_attention.spec import DeltaSpec
from workers.linear_attention.states import LayerStates, StateSizes
from workers.models.attention import Attention
from workers.models.base import MLP, BuildContext, ForwardBatch
from workers.models.delta_net import DeltaNet
from workers.models.dense_mlp import DenseMLP
from workers.models.end_norms import EndNormLayer
from workers.models.mla import LatentAttention
from workers.models.sparse_mlp import SparseMLP, make_expert_load


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP. What either makes is added to the residual by the next norm."""

    def __init__(
        self,
        config: ModelConfig,
        build: BuildContext,
        attention: Attention | LatentAttention | DeltaNet,
        mlp: MLP,
    ) -> None:
        super().__init__()
        norm = (
            config.hidden_size,
            config.rms_norm_eps,
            build.dtype,
            build.device,
            build.context,
            build.has_fp8,
        )
        self.names = config.names
        self.multiplier = config.residual_multiplier
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = NORMS[config.norm](*norm)
        self.post_attention_layernorm = NORMS[config.norm](*norm)

    def forward(
        self,
        residual_TH: torch.Tensor,
        update: DeferredSum | None,
        cache: LayerCache | LayerStates,
        batch: ForwardBatch,
    ) -> tuple[torch.Tensor, DeferredSum]:
        """The residual stream and what this layer's MLP adds to it; ``update`` is that of the layer
        before. Of a batch with ``drawn_R`` both are those rows alone."""
        in_eight_bits = self.self_attn.takes_quantized(len(residual_TH))
        normed = self.input_layernorm.add_for_readers(
            residual_TH, update, in_eight_bits=in_eight_bits
        )
        update = self.self_attn(normed.rows, cache, batch.attention, normed.quantized)
        residual_TH = batch.attention.pick_drawn(normed.residual, self.self_attn.context)
        normed = self.post_attention_layernorm.add_for_readers(
            residual_TH,
            update.times(self.multiplier),
            in_eight_bits=self.mlp.takes_quantized(len(residual_TH)),
            router_EH=self.mlp.router_weight,
        )
        update = self.mlp(normed.rows, batch, normed.quantized, normed.logits)
        return normed.residual, update.times(self.multiplier)

    def norm_slices(self, prefix: str) -> Iterator[CheckpointSlice]:
        """Those of its norms; ``prefix`` is that of the layer."""
        yield from self.input_layernorm.checkpoint_slices(f"{prefix}{self.names.attention_norm}.")
        yield from self.post_attention_layernorm.checkpoint_slices(
            f"{prefix}{self.names.mlp_norm}."
        )


class Decoder(nn.Module):
    """One rank's share of a model; a `workers.models.base.Model`."""

    layers: Sequence[DecoderLayer | EndNormLayer]

    def __init__(self, config: ModelConfig, build: BuildContext) -> None:
        super().__init__()
        dtype, device, context = build.dtype, build.device, build.context
        self.names = config.names
        self.attention_prefixes = [config.attention_prefix(i) for i in range(config.num_layers)]
        self.layer_groups = LayerGroups.of(config.attention, build.max_positions)
        self.embedding_multiplier = config.embedding_multiplier
        self.logits_divisor = config.logits_divisor
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, dtype, device, context)
        self.expert_load = make_expert_load(config, build)
        self.rotaries = _rotaries(config, build)
        layers = nn.ModuleList(
            self._layer(config, build, each) for each in range(config.num_layers)
        )
        self.layers = cast(Sequence[DecoderLayer | EndNormLayer], layers)
        norm, is_tied = NORMS[config.norm], config.tie_word_embeddings
        self.norm = norm(config.hidden_size, config.rms_norm_eps, dtype, device, context)
        tied = self.embed_tokens if is_tied else None
        self.lm_head = LMHead(
            config.vocab_size, config.hidden_size, tied, build.groups, dtype, device, context,
            has_bias=config.lm_head_bias,
        )  # fmt: skip
        # A tied head is sometimes saved all the same.
        self.tied_weights = frozenset({f"{config.names.head}.weight"} if is_tied else ())

    def _layer(
        self, config: ModelConfig, build: BuildContext, index: int
    ) -> DecoderLayer | EndNormLayer:
        spec = config.attention[index]
        rotary, prefix = None, config.attention_prefix(index)
        if not isinstance(spec, DeltaSpec) and spec.rope is not None:
            rotary = cast(RotaryEmbedding, self.rotaries[config.ropes.index(spec.rope)])
        attention: Attention | LatentAttention | DeltaNet
        if isinstance(spec, DeltaSpec):
            attention = DeltaNet(spec, config, build, prefix)
        elif isinstance(spec, MlaSpec):
            assert rotary is not None
            attention = LatentAttention(spec, config.hidden_size, build, rotary, prefix)
        else:
            attention = Attention(spec, config, build, rotary, prefix)
        mlp = _mlp(config, build, self.expert_load, index)
        if config.norms == "before":
            return DecoderLayer(config, build, attention, mlp)
        assert not isinstance(attention, DeltaNet)
        return EndNormLayer(config, build, attention, mlp)

    def of_each_kind(self, config: ModelConfig) -> Decoder:
        """A model of this one's weights that runs two layers of each kind, if there are so many,
        and the last one: what it launches is what the whole model does."""
        found: Counter[object] = Counter()
        indices = []
        for index, layer in enumerate(cast(nn.ModuleList, self.layers)):
            shapes = tuple((name, each.shape) for name, each in layer.named_parameters())
            kind = config.attention[index], shapes
            found[kind] += 1
            if found[kind] <= 2 or index == len(self.layers) - 1:
                indices.append(index)
        few = copy.copy(self)
        few._modules = {**self._modules, "layers": nn.ModuleList(self.layers[i] for i in indices)}
        places = tuple(self.layer_groups.places[index] for index in indices)
        few.layer_groups = dataclasses.replace(self.layer_groups, places=places)
        return few

    @property
    def num_kv_heads(self) -> int:
        """KV heads of this rank."""
        modules = (layer.self_attn for layer in self.layers)
        return next(each.num_kv_heads for each in modules if not isinstance(each, DeltaNet))

    def state_sizes(self, num_states: int) -> StateSizes | None:
        """As `Model` says."""
        found = [each for each in self.modules() if isinstance(each, DeltaNet)]
        return found[0].state_sizes(len(found), num_states) if found else None

    def forward(self, batch: ForwardBatch, cache: KVCache) -> torch.Tensor:
        """Last hidden states, normed, ``[T, H]`` or ``[R, H]`` of ``batch.drawn``."""
        for rotary in self.rotaries:
            cast(RotaryEmbedding, rotary).cover(max(batch.attention.lengths, default=0))
        residual_TH = self.embed_tokens(batch.ids_T, batch.attention.slots_T, batch.last_token)
        if self.embedding_multiplier != 1:
            residual_TH.mul_(self.embedding_multiplier)
        update, last = None, self.layers[-1]
        of_groups = [
            dataclasses.replace(batch, attention=each) for each in batch.attention.of_groups()
        ]
        for layer, (group, place) in zip(self.layers, self.layer_groups.places, strict=True):
            own = of_groups[group].of_drawn if layer is last else of_groups[group]
            has_state = isinstance(layer.self_attn, DeltaNet)
            kept = cache.states[place] if has_state else cache.layers[place]
            residual_TH, update = layer(residual_TH, update, kept, own)
        assert update is not None
        return self.norm.add(residual_TH, update)[1]

    def logits(self, hidden_DH: torch.Tensor) -> torch.Tensor:
        """Logits ``[D, V]`` for the rows given, whole on every rank."""
        logits_DV: torch.Tensor = self.lm_head(hidden_DH)
        return logits_DV if self.logits_divisor == 1 else logits_DV.div_(self.logits_divisor)

    def checkpoint_slices(self) -> Iterator[CheckpointSlice]:
        """Every tensor of the checkpoint, those of other ranks without a target."""
        names = self.names
        yield from self.embed_tokens.checkpoint_slices(f"{names.model}.embed_tokens.")
        for index, layer in enumerate(self.layers):
            yield from layer.self_attn.checkpoint_slices(self.attention_prefixes[index])
            yield from layer.mlp.checkpoint_slices(names.layer_mlp(index))
            yield from layer.norm_slices(names.layer(index))
        yield from self.norm.checkpoint_slices(f"{names.model}.norm.")
        yield from self.lm_head.checkpoint_slices(f"{names.head}.")


def _rotaries(config: ModelConfig, build: BuildContext) -> nn.ModuleList:
    """One for each of `ModelConfig.ropes`, in their order."""
    return nn.ModuleList(
        RotaryEmbedding(rope, build.max_positions, build.device) for rope in config.ropes
    )


def _mlp(config: ModelConfig, build: BuildContext, load: ExpertCounters | None, layer: int) -> MLP:
    """Dense or a mixture, as ``config.moe_layers`` says."""
    prefix = config.names.layer_mlp(layer)
    if config.moe is None or load is None or not config.moe_layers[layer]:
        return DenseMLP(config, build, prefix)
    ids_P = load.ids_LP[sum(config.moe_layers[:layer])]
    return SparseMLP(config.moe, build, ids_P, prefix)
