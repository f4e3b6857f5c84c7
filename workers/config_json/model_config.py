"""The numbers of a model folder: config.json and generation_config.json, checked once.

Torch-free, so that the launcher can refuse a bad folder before anything heavy is imported. Knows
nothing of processes, devices or weights.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from moe.base.fp8_format import Fp8Format
from moe.base.int4_format import Int4Format
from moe.base.weight_format import WeightFormat
from moe.config import MoEConfig
from switchyard.model_files import read_object, shown
from workers.attention.any import AnyAttention, CachedAttention
from workers.config_json.config_keys import read_keys
from workers.config_json.decoder_names import DecoderNames
from workers.config_json.model_types import ModelType, MoEKeys, NormKind, NormPlaces, Values
from workers.config_json.quantization import read_modelopt_file, read_quantization
from workers.config_json.quantized_modules import Quantization
from workers.config_json.rope_keys import RopeReader, unknown_rope_keys
from workers.config_json.text_keys import text_keys
from workers.families import MODEL_TYPES
from workers.layers.rope_spec import RopeSpec
from workers.linear_attention.spec import DeltaSpec

_Meaning = TypeVar("_Meaning")

_MAX_END_TOKENS = 256
_TORCH_DTYPES = ("bfloat16", "float16", "float32")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The numbers of a decoder, in either spelling of config.json.

    Attributes:
        architecture: transformers' class, by which servers and clients know it.
        attention: of each layer; all that have a cache have the same entries there.
        names: what the checkpoint calls tensors.
        moe: the experts' numbers; None for a dense model.
        moe_layers: for each layer, whether its MLP is a mixture.
        eos_token_ids: of both files, those of generation_config.json first.
        dtype: the checkpoint's own, a torch dtype's name.
        quantization: of weights that have fewer bits than ``dtype``; None where none have.
        norm: of layers and of what the last gives; those of q and k are RMSNorms.
        norms: where they stand in a layer: before attention and MLP, behind them, or both.
        lm_head_bias: whether the head has one.
        aliases: what the names of tensors may begin with, and what they begin with here.
        left_out: what the names of tensors begin with that the checkpoint holds for other uses.
        embedding_multiplier: of what the embedding gives.
        residual_multiplier: of what attention and MLPs add to the residual.
        logits_divisor: of what the head gives.
        unknown_keys: of config.json; nothing here knows what they mean.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    attention: tuple[AnyAttention, ...]
    names: DecoderNames
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    dtype: str
    moe: MoEConfig | None
    moe_layers: tuple[bool, ...]
    quantization: Quantization | None = None
    norm: NormKind = "rms"
    norms: NormPlaces = "before"
    lm_head_bias: bool = False
    aliases: Values = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    unknown_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.check_heads(1)

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The rotary embeddings of the layers, each once."""
        return tuple(dict.fromkeys(each.rope for each in self.cached if each.rope is not None))

    @property
    def cached(self) -> tuple[CachedAttention, ...]:
        """Attention of the layers that have keys and values."""
        return tuple(each for each in self.attention if not isinstance(each, DeltaSpec))

    def attention_prefix(self, layer: int) -> str:
        """What the names of a layer's attention's modules begin with."""
        if isinstance(self.attention[layer], DeltaSpec):
            return self.names.layer_linear_attention(layer)
        return self.names.layer_attention(layer)

    @property
    def reads_fp8(self) -> bool:
        """Whether the checkpoint holds 8-bit weights."""
        return isinstance(self._read_format, Fp8Format)

    @property
    def reads_int4(self) -> bool:
        """Whether the checkpoint holds 4-bit weights."""
        return isinstance(self._read_format, Int4Format)

    @property
    def _read_format(self) -> WeightFormat | None:
        """That of a checkpoint's weights of fewer bits."""
        if self.quantization is None or self.quantization.weight_format.stored == "plain":
            return None
        return self.quantization.weight_format

    def check_heads(self, tp: int) -> None:
        """Raise ValueError unless every layer's heads divide over ``tp`` ranks."""
        for spec in dict.fromkeys(self.attention):
            spec.check_heads(tp)

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise ValueError unless attention and dense MLPs divide over ``tp`` ranks."""
        self.check_heads(tp)
        if not all(self.moe_layers) and self.intermediate_size % tp:
            raise ValueError(
                f"--tp {tp} does not divide intermediate_size {self.intermediate_size}"
            )

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read ``config.json`` and, for the end tokens, ``generation_config.json``; for what
        config.json does not say of weights, ModelOpt's ``hf_quant_config.json``.

        Raises:
            ValueError: one line naming the file and what is wrong or not built.
        """
        config = _read(folder / "config.json", cls.from_hf)
        path = folder / "hf_quant_config.json"
        if config.quantization is None and path.exists():
            config = dataclasses.replace(config, quantization=_read(path, read_modelopt_file))
        path = folder / "generation_config.json"
        if not path.exists():
            return config
        ids = _read(path, lambda raw: _end_tokens(raw, config.vocab_size))
        both = tuple(dict.fromkeys((*ids, *config.eos_token_ids)))
        return dataclasses.replace(config, eos_token_ids=both)

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> ModelConfig:
        """From the contents of config.json, as on the Hub or as transformers 5 writes it."""
        model_type = raw.get("model_type")
        entry = MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
        if entry is None:
            raise ValueError(
                f"model_type {shown(model_type)} is not supported; {_nearest(model_type)}"
            )
        raw = text_keys(raw, entry)
        quantization = read_quantization(raw)
        values, unknown = read_keys(raw, entry)
        _refuse_other_attention(raw, values)
        num_layers = values["num_hidden_layers"]
        return cls(
            architecture=entry.architecture,
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_layers=num_layers,
            attention=_attention(entry, raw, values),
            names=entry.names,
            rms_norm_eps=values["rms_norm_eps"],
            max_position_embeddings=values["max_position_embeddings"],
            tie_word_embeddings=values["tie_word_embeddings"],
            eos_token_ids=_end_tokens(raw, values["vocab_size"]),
            dtype=_dtype(raw),
            moe=None if entry.moe is None else entry.moe.config(values),
            moe_layers=_moe_layers(entry.moe, values, num_layers),
            quantization=quantization,
            norm=entry.norm,
            norms=entry.norms,
            lm_head_bias=values.get("lm_head_bias", False),
            aliases=entry.aliases,
            left_out=entry.left_out(values),
            **entry.multipliers(values),
            unknown_keys=(*unknown, *unknown_rope_keys(raw, entry.rope)),
        )


def _nearest(model_type: object) -> str:
    """What is served that has a name like it, and where the others are listed."""
    names = difflib.get_close_matches(str(model_type), sorted(MODEL_TYPES), n=3, cutoff=0.5)
    like = f"names like it: {', '.join(names)}; " if names else ""
    return f"{like}`switchyard models` lists what is"


def _read(path: Path, meaning: Callable[[dict[str, Any]], _Meaning]) -> _Meaning:
    """What a file's object means; a ValueError about it names the file."""
    raw = read_object(path)
    try:
        return meaning(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _refuse_other_attention(raw: dict[str, Any], values: Values) -> None:
    """Refuse windows and other kinds of layers, where the type's file does not read them."""
    window, num_layers = raw.get("sliding_window", "the default"), values["num_hidden_layers"]
    if "sliding_window" not in values and raw.get("use_sliding_window") and window is not None:
        raise ValueError(
            f"use_sliding_window is set, sliding_window {shown(window)}; only full attention is "
            f"built for {raw['model_type']}: serve a model without"
        )
    kinds = raw.get("layer_types")
    if "layer_types" not in values and kinds not in (None, ["full_attention"] * num_layers):
        raise ValueError(
            f"layer_types is {shown(kinds)}; it must be full_attention, once for each of "
            f"num_hidden_layers {num_layers}: no other kind is built"
        )


def _attention(entry: ModelType, raw: dict[str, Any], values: Values) -> tuple[AnyAttention, ...]:
    """That of each layer."""
    rope = RopeReader(raw=raw, max_positions=values["max_position_embeddings"], defaults=entry.rope)
    layers = range(values["num_hidden_layers"])
    return tuple(entry.attention(values, layer, rope) for layer in layers)


def _dtype(raw: dict[str, Any]) -> str:
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if dtype not in _TORCH_DTYPES:
        raise ValueError(f"dtype is {shown(dtype)}; known: {', '.join(_TORCH_DTYPES)}")
    return str(dtype)


def _end_tokens(raw: dict[str, Any], vocab_size: int) -> tuple[int, ...]:
    """The end tokens that a file names: one, a list of them, or none."""
    said = raw.get("eos_token_id")
    if said is None:
        return ()
    ids = said if isinstance(said, list) else [said]
    if len(ids) > _MAX_END_TOKENS or any(type(token) is not int for token in ids):
        raise ValueError(
            f"eos_token_id is {shown(said)}; it must be a whole number, or a list of at most "
            f"{_MAX_END_TOKENS}"
        )
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"eos_token_id {shown(token)} is not in the vocabulary, whose vocab_size is "
                f"{vocab_size}; name a token that the model can draw"
            )
    return tuple(ids)


def _moe_layers(keys: MoEKeys | None, values: dict[str, Any], num_layers: int) -> tuple[bool, ...]:
    return tuple(keys is not None and keys.is_sparse(values, layer) for layer in range(num_layers))
