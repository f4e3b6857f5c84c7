"""The keys of config.json that say how a rotary embedding is, in both spellings.

Owns `rope_parameters`, as transformers 5 writes it, also one for each kind of layer, `rope_scaling`
with a `rope_theta` beside it, as on the Hub, and the bounds of their numbers. What is absent, and
what counts of two, is as in transformers' RotaryEmbeddingConfigMixin. Torch-free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from switchyard.model_files import shown
from workers.config_json.rope_scaling_keys import KINDS, SMALLEST, RopeNumbers, RopeObject, bounded
from workers.layers.rope_spec import RopeSpec

_LARGEST = 1 << 27  # of what no kind of embedding reads
_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeDefaults:
    """What a model type has where config.json says nothing.

    Attributes:
        theta: base of the wavelengths.
        sliding_theta: that of layers with a window, where types of layers have their own.
        partial: share of a head that is turned. None: whole heads, and config.json may not ask for
            less, since transformers would not hear it.
        dim_key: of how many dimensions are turned, where no share of a head is said.
        interleaved: see `RopeSpec`.
        ignored: keys beside the embedding's that do not matter to text, or that the type reads.
        absent: the object where config.json has none.
    """

    theta: float = 10000.0
    sliding_theta: float | None = None
    partial: float | None = None
    dim_key: str | None = None
    interleaved: bool = False
    ignored: frozenset[str] = frozenset()
    absent: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def theta_of(self, layer_type: str | None) -> float:
        """That of a type of layers."""
        if layer_type == "sliding_attention" and self.sliding_theta is not None:
            return self.sliding_theta
        return self.theta

    @property
    def keys(self) -> tuple[str, ...]:
        """What is read beside the embedding's object that not every type reads."""
        share = () if self.partial is None else ("partial_rotary_factor",)
        return share if self.dim_key is None else (*share, self.dim_key)


WHOLE_HEADS = RopeDefaults()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeReader:
    """A `workers.config_json.model_types.RopeOf` of a config.json."""

    raw: Mapping[str, Any]
    max_positions: int
    defaults: RopeDefaults

    def __call__(
        self, head_dim: int, layer_type: str | None = None, partial: float | None = None
    ) -> RopeSpec:
        """As `read_rope`, with this ``partial`` of `RopeDefaults` where there is one."""
        defaults = self.defaults
        if partial is not None:
            defaults = dataclasses.replace(defaults, partial=partial)
        return read_rope(
            self.raw,
            head_dim=head_dim,
            max_positions=self.max_positions,
            defaults=defaults,
            layer_type=layer_type,
        )

    def number(self, key: str) -> float | None:
        """One of the object that no kind of embedding reads; None where it is absent."""
        said = _whole_object(self.raw, self.defaults)
        value = said.values.get(key)
        return None if value is None else bounded(f"{said.where}.{key}", value, 0, _LARGEST)


def read_rope(
    raw: Mapping[str, Any],
    *,
    head_dim: int,
    max_positions: int,
    defaults: RopeDefaults,
    layer_type: str | None = None,
) -> RopeSpec:
    """The rotary embedding of a model, or of its layers of one type.

    Args:
        head_dim: of which the embedding turns a share.
        max_positions: max_position_embeddings.
        layer_type: for types with an embedding for each; one for all is taken too.

    Raises:
        ValueError: one line naming the key that is wrong or not built.
    """
    said = _read_object(raw, layer_type, defaults)
    theta = said.first("rope_theta", raw, defaults.theta_of(layer_type), least=1, most=1e15)
    dim = _turned(said, raw, head_dim, defaults)
    kind = said.kind
    scaling = None
    if kind != "default":
        original = None if said.is_nested else raw.get("original_max_position_embeddings")
        numbers = RopeNumbers(said, dim, theta, max_positions, original)
        scaling = KINDS[kind].read(numbers)
    return RopeSpec(dim=dim, theta=theta, interleaved=defaults.interleaved, scaling=scaling)


def unknown_rope_keys(raw: Mapping[str, Any], defaults: RopeDefaults) -> list[str]:
    """Keys of the object that nothing reads. Raises ValueError as `read_rope`."""
    whole = _whole_object(raw, defaults)
    types = [each for each in _LAYER_TYPES if isinstance(whole.values.get(each), dict)]
    parts = [whole.part(each) for each in types] or [whole]
    found = [f"{whole.where}.{key}" for key in whole.values if types and key not in _LAYER_TYPES]
    for said in parts:
        keys = () if said.kind == "default" else KINDS[said.kind].keys
        known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *keys}
        known |= defaults.ignored
        found += [f"{said.where}.{key}" for key in said.values if key not in known]
    return found


def _whole_object(raw: Mapping[str, Any], defaults: RopeDefaults) -> RopeObject:
    """Of two spellings the older one counts."""
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    said = raw.get(key) or dict(defaults.absent)
    if not isinstance(said, dict):
        raise ValueError(f"{key} is {shown(said)}; it must be an object")
    return RopeObject(key, said)


def _read_object(
    raw: Mapping[str, Any], layer_type: str | None, defaults: RopeDefaults
) -> RopeObject:
    """That of a type of layers, where each has one."""
    whole = _whole_object(raw, defaults)
    if not any(isinstance(whole.values.get(each), dict) for each in _LAYER_TYPES):
        return whole
    if layer_type is None:
        raise ValueError(
            f"{whole.where} has one rotary embedding for each type of layers; "
            f"{shown(raw.get('model_type'))} has one for all: say it without {_LAYER_TYPES[0]}"
        )
    if not isinstance(whole.values.get(layer_type), dict):
        raise ValueError(
            f"{whole.where}.{layer_type} is {shown(whole.values.get(layer_type))}; it must be an "
            "object, for there are such layers"
        )
    return whole.part(layer_type)


def _turned(said: RopeObject, raw: Mapping[str, Any], head_dim: int, defaults: RopeDefaults) -> int:
    """Dimensions of a head that are turned."""
    key = "partial_rotary_factor"
    if defaults.partial is None:
        if (asked := said.values.get(key)) not in (None, 1):
            raise ValueError(
                f"{said.where} has {key} {shown(asked)}; only full rotary embedding is built for "
                f"{shown(raw.get('model_type'))}"
            )
        if head_dim % 2:
            raise ValueError(f"head_dim {head_dim} is odd; rotary embedding needs pairs")
        return head_dim
    share = defaults.partial
    if defaults.dim_key is not None and (said_dim := raw.get(defaults.dim_key)) is not None:
        share = bounded(defaults.dim_key, said_dim, 2, head_dim) / head_dim
    share = said.first(key, raw, share, least=SMALLEST, most=1)
    dim = int(head_dim * share)
    if dim < 2 or dim % 2:
        raise ValueError(
            f"{key} {share:g} of head_dim {head_dim} turns {dim} dimensions; rotary embedding "
            "needs pairs"
        )
    return dim
