"""The numbers of a scaled rotary embedding in config.json, a kind each.

Owns the objects that hold them, their bounds, and what of them may be absent. Torch-free. Does not
know where the objects stand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from switchyard.model_files import shown
from workers.layers.rope_spec import (
    AlphaScaling,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)

_MOST_POSITIONS = 1 << 27
_MOST_FACTOR = 1e6
SMALLEST = 1e-6


@dataclasses.dataclass(frozen=True, slots=True)
class RopeObject:
    """An object of config.json; ``where`` it stands is in the lines of errors."""

    where: str
    values: Mapping[str, Any]
    is_nested: bool = False

    def part(self, layer_type: str) -> RopeObject:
        return RopeObject(f"{self.where}.{layer_type}", self.values[layer_type], True)

    @property
    def kind(self) -> str:
        """`default`, or a key of KINDS."""
        kind = self.values.get("rope_type") or self.values.get("type") or "default"
        if kind == "dynamic" and self.values.get("alpha"):
            return "alpha"
        if kind == "default" or (isinstance(kind, str) and kind in KINDS and kind != "alpha"):
            return kind
        known = ", ".join(sorted({"default", *KINDS} - {"alpha"}))
        raise ValueError(f"{self.where} asks for {shown(kind)}; rotary embeddings built: {known}")

    def first(
        self, key: str, raw: Mapping[str, Any], default: float, *, least: float, most: float
    ) -> float:
        """Of a key that may also stand beside the object."""
        given = (self.values.get(key), raw.get(key), default)
        value = next(each for each in given if each is not None)
        return bounded(key, value, least, most)


@dataclasses.dataclass(frozen=True, slots=True)
class RopeNumbers:
    """What a kind of scaling reads, and what its numbers depend on."""

    said: RopeObject
    dim: int
    theta: float
    max_positions: int
    original_beside: Any

    def get(
        self, key: str, default: float | None = None, *, least: float = SMALLEST, most: float = 1e6
    ) -> float:
        """A number; null is absent.

        Raises:
            ValueError: it is out of bounds, or absent without a default.
        """
        value = self.said.values.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise ValueError(f"{self.said.where} of kind {self.said.kind!r} has no {key}")
        return bounded(f"{self.said.where}.{key}", value, least, most)

    def maybe(self, key: str, *, least: float = 0, most: float = 1e3) -> float | None:
        """A number or None."""
        if self.said.values.get(key) is None:
            return None
        return self.get(key, least=least, most=most)

    @property
    def factor(self) -> float:
        return self.get("factor", least=1, most=_MOST_FACTOR)

    @property
    def original(self) -> int:
        """Positions of the training; what stands beside the object counts first."""
        key = "original_max_position_embeddings"
        given = (self.original_beside, self.said.values.get(key), self.max_positions)
        value = next(each for each in given if each is not None)
        if type(value) is not int or not 2 <= value <= _MOST_POSITIONS:
            raise ValueError(
                f"{key} is {shown(value)}; it must be a whole number from 2 to {_MOST_POSITIONS}"
            )
        return value

    def factors(self, key: str) -> tuple[float, ...]:
        """A list with a number for each pair of dimensions."""
        value, count = self.said.values.get(key), self.dim // 2
        if not isinstance(value, list) or len(value) != count:
            raise ValueError(
                f"{self.said.where}.{key} is {shown(value)}; it must be a list of {count} numbers, "
                f"one for two of the {self.dim} dimensions that are turned"
            )
        return tuple(
            bounded(f"{self.said.where}.{key}", each, SMALLEST, _MOST_FACTOR) for each in value
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """One rope_type: its own keys and how they are read."""

    read: Callable[[RopeNumbers], RopeScaling]
    keys: tuple[str, ...]


def _llama3(numbers: RopeNumbers) -> Llama3Scaling:
    low, high = numbers.get("low_freq_factor"), numbers.get("high_freq_factor")
    if high <= low:
        raise ValueError(
            f"{numbers.said.where}.high_freq_factor {high:g} must be above low_freq_factor {low:g}"
        )
    return Llama3Scaling(
        factor=numbers.factor,
        original=numbers.original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(numbers: RopeNumbers) -> YarnScaling:
    """A factor of null is that between both lengths; one that is absent is refused."""
    values, where = numbers.said.values, numbers.said.where
    ratio = numbers.max_positions / numbers.original
    is_ratio = "factor" in values and values["factor"] is None and ratio >= 1
    fast, slow = numbers.get("beta_fast", 32.0, least=0), numbers.get("beta_slow", 1.0, least=0)
    fast, slow = fast or 32.0, slow or 1.0
    if fast < slow:
        raise ValueError(f"{where}.beta_fast {fast:g} must not be below beta_slow {slow:g}")
    if numbers.theta == 1:
        raise ValueError("rope_theta is 1; with a rotary embedding of kind 'yarn' it must be above")
    truncate = values.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ValueError(f"{where}.truncate is {shown(truncate)}; it must be true or false")
    return YarnScaling(
        factor=ratio if is_ratio else numbers.factor,
        original=numbers.original,
        attention_factor=numbers.maybe("attention_factor"),
        mscale=numbers.maybe("mscale"),
        mscale_all_dim=numbers.maybe("mscale_all_dim"),
        beta_fast=fast,
        beta_slow=slow,
        truncate=truncate,
    )


def _longrope(numbers: RopeNumbers) -> LongRopeScaling:
    """PhiMoE's mscales say the amplitudes; with others it is one, by the factor.

    transformers' PhimoeRotaryEmbedding has the long amplitude with the short factors, which no
    other longrope has: it is not followed.
    """
    original = numbers.original
    factor = numbers.maybe("factor", least=1, most=_MOST_FACTOR)
    factor = numbers.max_positions / original if factor is None else factor
    amplitude = numbers.maybe("attention_factor")
    if amplitude is None:
        stretch = max(0.0, math.log(factor)) / math.log(original)
        amplitude = math.sqrt(1 + stretch)
    return LongRopeScaling(
        original=original,
        short_factors=numbers.factors("short_factor"),
        long_factors=numbers.factors("long_factor"),
        short_amplitude=numbers.get("short_mscale", amplitude),
        long_amplitude=numbers.get("long_mscale", amplitude),
    )


def _alpha(numbers: RopeNumbers) -> AlphaScaling:
    if numbers.dim == 2:
        raise ValueError(f"{numbers.said.where}.alpha needs more than the 2 dimensions of a head")
    return AlphaScaling(alpha=numbers.get("alpha", least=1))


KINDS: Mapping[str, _Kind] = {
    "linear": _Kind(lambda numbers: LinearScaling(factor=numbers.factor), ("factor",)),
    "dynamic": _Kind(lambda numbers: DynamicScaling(factor=numbers.factor), ("factor",)),
    # Spelt `dynamic`, with this key: transformers' HunYuanMoEV1RotaryEmbedding.
    "alpha": _Kind(
        _alpha, ("alpha", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    ),
    "llama3": _Kind(
        _llama3,
        (
            "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
        ),
    ),
    "yarn": _Kind(
        _yarn,
        (
            "factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
            "beta_slow", "mscale", "mscale_all_dim", "truncate",
        ),
    ),
    "longrope": _Kind(
        _longrope,
        (
            "factor", "original_max_position_embeddings", "attention_factor", "short_factor",
            "long_factor", "short_mscale", "long_mscale",
        ),
    ),
}  # fmt: skip


def bounded(name: str, value: Any, least: float, most: float) -> float:
    # A bool is an int to isinstance, and no comparison holds for NaN.
    if type(value) not in (int, float) or not least <= value <= most:
        raise ValueError(
            f"{name} is {shown(value)}; it must be a number from {least:g} to {most:g}"
        )
    return float(value)
