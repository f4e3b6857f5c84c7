"""The numbers of a model folder: config.json and generation_config.json, checked once.

Torch-free, so that the launcher can refuse a bad folder before anything heavy is imported. Knows
nothing of processes, devices or weights.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from moe.config import MoEConfig
from workers.model_types import MODEL_TYPES, MoEKeys, Values

# Null is a value of its own: as many as query heads; hidden_size / heads.
_NULLABLE = ("num_key_value_heads", "head_dim")
_DEFAULT_ROPE_THETA = 10000.0
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "max_position_embeddings",
)
_TORCH_DTYPES = ("bfloat16", "float16", "float32")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The numbers of a decoder, in either spelling of config.json.

    Attributes:
        architecture: key of workers.models.MODELS.
        moe: the experts' numbers; None for a dense model.
        moe_layers: for each layer, whether its MLP is a mixture.
        dtype: the checkpoint's own, a torch dtype's name.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    dtype: str
    moe: MoEConfig | None
    moe_layers: tuple[bool, ...]

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if any(type(token) is not int for token in self.eos_token_ids):
            raise ValueError(f"eos_token_id {list(self.eos_token_ids)} must be whole numbers")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embedding needs pairs")

    def check_tensor_parallel(self, tp: int) -> None:
        """Raise ValueError unless attention and dense MLPs divide over ``tp`` ranks."""
        if self.num_heads % tp:
            raise ValueError(f"--tp {tp} does not divide num_attention_heads {self.num_heads}")
        if self.num_kv_heads % tp and tp % self.num_kv_heads:
            raise ValueError(
                f"--tp {tp} neither divides num_key_value_heads {self.num_kv_heads} "
                "nor is a multiple of it"
            )
        if not all(self.moe_layers) and self.intermediate_size % tp:
            raise ValueError(
                f"--tp {tp} does not divide intermediate_size {self.intermediate_size}"
            )

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read ``config.json`` and, for the end tokens, ``generation_config.json``.

        Raises:
            ValueError: one line naming the file and what is wrong or not built.
        """
        raw = _read_json(folder / "config.json")
        try:
            config = cls.from_hf(raw)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'config.json'}: wrong type: {error}") from None
        generation = folder / "generation_config.json"
        if generation.exists():
            eos = _token_ids(_read_json(generation).get("eos_token_id"))
            if eos:
                config = dataclasses.replace(config, eos_token_ids=eos)
        return config

    @classmethod
    def from_hf(cls, raw: dict[str, Any]) -> ModelConfig:
        """From the contents of config.json, as on the Hub or as transformers 5 writes it."""
        model_type = raw.get("model_type")
        entry = MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
        if entry is None:
            known = ", ".join(sorted(MODEL_TYPES))
            raise ValueError(f"model_type {model_type!r} is not supported; known: {known}")
        _check_types(raw, entry.defaults)
        _refuse_unbuilt(raw)
        for key in ("num_attention_heads", "decoder_sparse_step"):
            if raw.get(key) == 0:
                raise ValueError(f"{key} is 0; it must be at least 1")
        given = {key: value for key, value in raw.items() if value is not None or key in _NULLABLE}
        values = {**entry.defaults, **given}
        num_layers = values["num_hidden_layers"]
        heads = values["num_attention_heads"]
        return cls(
            architecture=entry.architecture,
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_layers=num_layers,
            num_heads=heads,
            num_kv_heads=values["num_key_value_heads"] or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            rms_norm_eps=values["rms_norm_eps"],
            rope_theta=_rope_theta(raw),
            max_position_embeddings=values["max_position_embeddings"],
            tie_word_embeddings=values["tie_word_embeddings"],
            eos_token_ids=_token_ids(raw.get("eos_token_id")),
            dtype=_dtype(raw),
            moe=None if entry.moe is None else entry.moe.config(values),
            moe_layers=_moe_layers(entry.moe, values, num_layers),
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def _check_types(raw: dict[str, Any], defaults: Values) -> None:
    """Each key that is read has its default's type; null means absent, a float may be whole."""
    for key, default in {**defaults, "num_local_experts": 0, "head_dim": 0}.items():
        value = raw.get(key)
        wanted = (float, int) if isinstance(default, float) else (type(default),)
        if value is not None and type(value) not in wanted:
            names = " or ".join(kind.__name__ for kind in wanted)
            raise ValueError(f"{key} is {value!r}; it must be {names}")


def _refuse_unbuilt(raw: dict[str, Any]) -> None:
    """What changes the mathematics and is not built is refused by name."""
    if raw.get("quantization_config"):
        raise ValueError("quantization_config is set; only unquantized weights are supported")
    if raw.get("use_sliding_window") and raw.get("sliding_window"):
        raise ValueError("use_sliding_window is set; only full attention is supported")
    if any(kind != "full_attention" for kind in raw.get("layer_types") or ()):
        raise ValueError("layer_types names other than full_attention; only that is supported")
    if raw.get("attention_bias"):
        raise ValueError("attention_bias is set; only projections without bias are supported")
    if (raw.get("hidden_act") or "silu") != "silu":
        raise ValueError(f"hidden_act is {raw['hidden_act']!r}; only silu is supported")


def _rope_theta(raw: dict[str, Any]) -> float:
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        key = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
        raise ValueError(f"{key} asks for {kind!r}; only default rotary embedding is supported")
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial_rotary_factor is set; only full rotary embedding is supported")
    return float(scaling.get("rope_theta") or raw.get("rope_theta") or _DEFAULT_ROPE_THETA)


def _dtype(raw: dict[str, Any]) -> str:
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if dtype not in _TORCH_DTYPES:
        raise ValueError(f"dtype is {dtype!r}; known: {', '.join(_TORCH_DTYPES)}")
    return str(dtype)


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _moe_layers(keys: MoEKeys | None, values: dict[str, Any], num_layers: int) -> tuple[bool, ...]:
    return tuple(keys is not None and keys.is_sparse(values, layer) for layer in range(num_layers))
