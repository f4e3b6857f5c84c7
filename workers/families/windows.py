"""Which layers of a model have a sliding window, and how wide it is."""

from __future__ import annotations

from switchyard.model_files import shown
from workers.config_json.model_types import Values

WINDOW_DEFAULTS: Values = {"layer_types": (), "sliding_window": None}
"""Of types whose config.json may name a type for each layer."""

_TYPES = ("full_attention", "sliding_attention")


def layer_type(values: Values, layer: int, *, windowed: bool) -> str:
    """That of a layer, as ``layer_types`` says.

    Args:
        windowed: what it is without ``layer_types``.

    Raises:
        ValueError: one line naming a type that is not built, or how many there must be.
    """
    types, num_layers = values["layer_types"], values["num_hidden_layers"]
    if not types:
        return _TYPES[windowed]
    if len(types) != num_layers or types[layer] not in _TYPES:
        raise ValueError(
            f"layer_types is {shown(list(types))}; it must be {' or '.join(_TYPES)}, once for each "
            f"of num_hidden_layers {num_layers}: no other kind is built"
        )
    return str(types[layer])


def window(values: Values, layer: int, *, windowed: bool) -> int | None:
    """``sliding_window`` where the layer's type is sliding_attention, else None."""
    if layer_type(values, layer, windowed=windowed) == "full_attention":
        return None
    width = values["sliding_window"]
    if width is None:
        raise ValueError(
            "layer_types has sliding_attention and sliding_window is absent; say its width"
        )
    return int(width)
