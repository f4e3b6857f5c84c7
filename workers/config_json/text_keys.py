"""The keys of a text model whose config.json has them in an object, beside one for images.

Torch-free. Knows no key's meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from switchyard.model_files import shown
from workers.config_json.config_keys import NEUTRAL
from workers.config_json.model_types import ModelType

# As transformers reads them of a model with images.
_OF_THE_WHOLE = frozenset(
    {
        "architectures", "compression_config", "dtype", "model_type", "quantization_config",
        "tie_word_embeddings", "torch_dtype",
    }
)  # fmt: skip
# In the text model's object, where the whole has none of them.
_OR_OF_THE_TEXT = (
    {"dtype", "torch_dtype"}, {"compression_config", "quantization_config"},
)  # fmt: skip


def text_keys(raw: Mapping[str, Any], entry: ModelType) -> dict[str, Any]:
    """One object of all keys: those in ``entry.text_key``, and those beside it that are of the
    whole model or that the text model does not have.

    Raises:
        ValueError: it is not an object, or of a text model that is not this type's.
    """
    key = entry.text_key
    if key is None:
        return dict(raw)
    text = raw.get(key) or {}
    if not isinstance(text, dict):
        raise ValueError(f"{key} is {shown(text)}; it must be an object")
    if entry.text_types and text.get("model_type") not in entry.text_types:
        known = " or ".join(each for each in entry.text_types if each is not None)
        raise ValueError(
            f"{key}.model_type is {shown(text.get('model_type'))}; with model_type "
            f"{shown(raw.get('model_type'))} only {known} is built"
        )
    beside = {
        name: value
        for name, value in raw.items()
        if name != key and name not in entry.defaults and name not in NEUTRAL
    }
    whole = {name: raw[name] for name in _OF_THE_WHOLE if name in raw}
    unsaid = {name for group in _OR_OF_THE_TEXT if not whole.keys() & group for name in group}
    own = {name: value for name, value in text.items() if name not in _OF_THE_WHOLE - unsaid}
    return {**beside, **own, **whole}
