"""What a model type is: an entry of `workers.families.MODEL_TYPES`.

Owns what a key that is absent means, how keys become the numbers of attention, and which hold those
of mixtures. Torch-free. Knows nothing of files, and checks no value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from moe.config import MoEConfig, resolve_router
from moe.names import QWEN_NAMES, MoENames
from switchyard.model_files import shown
from workers.attention.any import AnyAttention
from workers.config_json.decoder_names import LLAMA_NAMES, DecoderNames
from workers.config_json.rope_keys import WHOLE_HEADS, RopeDefaults
from workers.layers.rope_spec import RopeSpec

Values = Mapping[str, Any]
NormKind = Literal["rms", "rms_of_one", "layer"]
NormPlaces = Literal["before", "behind", "both"]

# Fields of `MoEConfig` that keys of some types hold.
_NUMBERS_OF_SOME = (
    "n_group", "topk_group", "routed_scaling_factor",
    "norm_min", "logit_softcap", "router_jitter_noise",
)  # fmt: skip


def _first(spellings: tuple[str, ...], values: Values) -> int:
    """The number of the first one that is there; 0 without any."""
    return next((int(values[key]) for key in spellings if key in values), 0)


class RopeOf(Protocol):
    """Reads the rotary embedding of heads of a width, or that of layers of one type, and numbers
    beside it; see `workers.config_json.rope_keys.RopeReader`."""

    def __call__(
        self, head_dim: int, layer_type: str | None = None, partial: float | None = None
    ) -> RopeSpec: ...

    def number(self, key: str) -> float | None: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MoEKeys:
    """The keys of config.json that hold the numbers of a type's mixtures; None: it has no such key,
    and the number is `MoEConfig`'s default.

    Attributes:
        num_experts, num_experts_per_tok: spellings, the first one present counts; 0 experts make a
            model dense.
        shared_size: width of all shared experts together.
        num_shared: number of shared experts as wide as a routed one, instead of `shared_size`.
        shared_gated: not a key: whether a sigmoid gate weighs the shared experts.
        correction_bias: not a key: whether a sigmoid router has a bias. noaux_tc and softmax_bias
            always have one.
        fp32_gate: not a key: whether routers are held in fp32, whatever the model's dtype.
        first_sparse: index of the first layer that may be a mixture.
        last_sparse: index of the last one; -1: that of the last layer.
        sparse_step: every so many-th layer is a mixture.
        dense_layers: layers that are not, whatever the others say.
        mlp_types: of each layer, sparse or dense; where config.json has them, no other says which
            layers are mixtures.
        names: not a key: what checkpoints call its tensors.
    """

    num_experts: tuple[str, ...] = ("num_local_experts", "num_experts")
    intermediate_size: str = "moe_intermediate_size"
    num_experts_per_tok: tuple[str, ...] = ("num_experts_per_tok",)
    norm_topk_prob: str = "norm_topk_prob"
    n_group: str | None = None
    topk_group: str | None = None
    routed_scaling_factor: str | None = None
    norm_min: str | None = None
    logit_softcap: str | None = None
    router_jitter_noise: str | None = None
    shared_size: str | None = None
    num_shared: str | None = None
    shared_gated: bool = False
    correction_bias: bool = False
    fp32_gate: bool = False
    first_sparse: str | None = None
    last_sparse: str | None = None
    sparse_step: str | None = None
    dense_layers: str | None = None
    mlp_types: str | None = None
    names: MoENames = QWEN_NAMES

    def __post_init__(self) -> None:
        assert self.shared_size is None or self.num_shared is None

    def config(self, values: Values) -> MoEConfig | None:
        """The numbers of every mixture of a model; None without experts.

        Raises:
            ValueError: they contradict each other, or the router is unknown.
        """
        num_experts = self._num_experts(values)
        if not num_experts:
            return None
        optional = {
            field: values[key]
            for field in _NUMBERS_OF_SOME
            if (key := getattr(self, field)) is not None
        }
        shared_size = self._shared_size(values)
        return MoEConfig(
            hidden_size=values["hidden_size"],
            intermediate_size=values[self.intermediate_size],
            num_experts=num_experts,
            num_experts_per_tok=_first(self.num_experts_per_tok, values),
            norm_topk_prob=values[self.norm_topk_prob],
            router=resolve_router(values),
            use_correction_bias=self.correction_bias,
            fp32_gate=self.fp32_gate,
            shared_expert_size=shared_size,
            shared_expert_gated=self.shared_gated and shared_size > 0,
            names=self.names,
            **optional,
        )

    def is_sparse(self, values: Values, layer: int) -> bool:
        """Whether a layer's MLP is a mixture, by transformers' rules.

        Raises:
            ValueError: one line naming a type that is not built, or how many there must be.
        """
        if not self._num_experts(values):
            return False
        if self.mlp_types is not None and values[self.mlp_types]:
            return self._type(self.mlp_types, values, layer) == "sparse"
        if self.first_sparse is not None and layer < values[self.first_sparse]:
            return False
        if self.last_sparse is not None and -1 != values[self.last_sparse] < layer:
            return False
        if self.dense_layers is not None and layer in (values[self.dense_layers] or ()):
            return False
        return self.sparse_step is None or (layer + 1) % int(values[self.sparse_step]) == 0

    def _type(self, key: str, values: Values, layer: int) -> str:
        types, num_layers = values[key], values["num_hidden_layers"]
        if len(types) != num_layers or types[layer] not in ("sparse", "dense"):
            raise ValueError(
                f"{key} is {shown(list(types))}; it must be sparse or dense, once for each of "
                f"num_hidden_layers {num_layers}"
            )
        return str(types[layer])

    def _num_experts(self, values: Values) -> int:
        return _first(self.num_experts, values)

    def _shared_size(self, values: Values) -> int:
        if self.num_shared is not None:
            return int(values[self.num_shared] or 0) * int(values[self.intermediate_size])
        return 0 if self.shared_size is None else int(values[self.shared_size] or 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelType:
    """One model_type.

    Attributes:
        architecture: transformers' class, by which servers and clients know it.
        models: what people call its models.
        defaults: transformers' defaults for the keys that are read; a key has its default's type.
        allowed: of keys that choose between kinds of mathematics, the values that are built, None
            for absent first.
        attention: that of a layer, from the values, its index, and what reads a rotary embedding.
        one_a_layer: keys that hold a number, or a list with the same one for each layer.
        without_effect: keys of this type that do not matter to its answers.
        moe: None for a type that is always dense.
        rope: what its rotary embedding is where config.json says nothing.
        names: what its checkpoints call tensors.
        norm, norms: as `ModelConfig` has them.
        extra_layers: spellings of the number of layers behind the last that are for speculation,
            the first one present counts.
        aliases: what the names of tensors may begin with, and what they begin with as ``names`` has
            it.
        other_parts: what the names of tensors begin with that text does not need.
        text_key: of the object that holds the keys of the text model; None: they are not in one.
        text_types: model_type there, None for absent; empty: it is not looked at.
        multiplier_keys: of fields of `ModelConfig`, the keys that hold them.
        embedding_root_key: where it holds true, the embedding is multiplied by the root of
            hidden_size.
    """

    architecture: str
    models: str
    defaults: Values
    attention: Callable[[Values, int, RopeOf], AnyAttention]
    allowed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    one_a_layer: tuple[str, ...] = ()
    without_effect: frozenset[str] = frozenset()
    moe: MoEKeys | None = None
    rope: RopeDefaults = WHOLE_HEADS
    names: DecoderNames = LLAMA_NAMES
    norm: NormKind = "rms"
    norms: NormPlaces = "before"
    extra_layers: tuple[str, ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    other_parts: tuple[str, ...] = ()
    text_key: str | None = None
    text_types: tuple[str | None, ...] = ()
    multiplier_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    embedding_root_key: str | None = None

    def left_out(self, values: Values) -> tuple[str, ...]:
        """What the names of a checkpoint's tensors begin with that are not served."""
        extra = _first(self.extra_layers, values)
        first = values["num_hidden_layers"]
        layers = (self.names.layer(first + index) for index in range(extra))
        return (*self.other_parts, *layers)

    def multipliers(self, values: Values) -> dict[str, float]:
        """Fields of `ModelConfig`. Raises ValueError: one is 0."""
        for key in self.multiplier_keys.values():
            if not values[key]:
                raise ValueError(f"{key} is 0, which leaves nothing of the tokens; say another")
        found = {field: float(values[key]) for field, key in self.multiplier_keys.items()}
        if self.embedding_root_key is not None and values[self.embedding_root_key]:
            found["embedding_multiplier"] = values["hidden_size"] ** 0.5
        return found


COMMON_DEFAULTS: Values = {
    "vocab_size": 151936,
    "num_attention_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
