"""The model's folder as the frontend sees it: finding it, and its generation defaults.

Owns the way from what a user names to a folder, and generation_config.json. Reads no weights, no
tokenizer, and of config.json the size of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any

from frontend.bounds import REPETITION_PENALTY_RANGE
from switchyard.model_files import read_object, shown

# What a model needs to run: weights as safetensors only, and every small text file.
_CONFIG = "config.json"
DOWNLOADED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


def resolve_model(name: str | None) -> Path:
    """The folder of a model: a local one, one fetched from the Hub, or the demo's for None.

    Raises:
        ValueError: there is no such folder and the Hub gave none either, or its config.json is not
            an object in JSON.
    """
    if name is None:
        return _checked(_demo_checkpoint())
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder.resolve())
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ValueError(
            f"no model folder {name}; pass a folder, or a Hub id such as Qwen/Qwen3-8B"
        )
    # Here, not above: a frontend that starts again does without what takes so long to import.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return _checked(Path(snapshot_download(name, allow_patterns=DOWNLOADED_FILES)))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name} is neither a folder here nor a model the Hub gave ({reason}); "
            "pass the folder of a model"
        ) from error


def served_name(name: str | None) -> str:
    """What clients call the model when nobody says: a folder's name, a Hub id, or "demo"."""
    if name is None:
        return "demo"
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() else name


def _demo_checkpoint() -> Path:
    """The folder of the checkpoint that comes with Switchyard."""
    spec = importlib.util.find_spec("demo")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the demo model is not installed; pass MODEL")
    return Path(spec.submodule_search_locations[0]) / "checkpoint"


def _checked(folder: Path) -> Path:
    if not (folder / _CONFIG).exists():
        raise ValueError(f"{folder} has no {_CONFIG}; pass the folder of a model")
    read_object(folder / _CONFIG)
    return folder


def read_vocab_size(folder: Path) -> int | None:
    """What config.json says of the vocabulary, which the workers check; None where it does not.

    Raises:
        ValueError: the file is not an object in JSON.
    """
    size = read_object(folder / _CONFIG).get("vocab_size")
    return size if isinstance(size, int) else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What an unset sampling field means, from generation_config.json; None is not said there."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_sampling_defaults(folder: Path) -> SamplingDefaults:
    """Read generation_config.json of a model folder; a missing file says nothing.

    ``do_sample: false`` is greedy, as transformers means it.

    Raises:
        ValueError: the file is not an object in JSON, or a value is out of range.
    """
    path = folder / "generation_config.json"
    if not path.exists():
        return SamplingDefaults()
    said = read_object(path)
    temperature = _number(path, said, "temperature", 0.0, math.inf)
    top_k = _number(path, said, "top_k", 0, 2**32 - 1)
    return SamplingDefaults(
        temperature=0.0 if said.get("do_sample") is False else temperature,
        top_p=_number(path, said, "top_p", 1e-6, 1.0),
        top_k=None if top_k is None else int(top_k),
        min_p=_number(path, said, "min_p", 0.0, 1.0),
        repetition_penalty=_number(path, said, "repetition_penalty", *REPETITION_PENALTY_RANGE),
    )


def _number(path: Path, said: dict[str, Any], key: str, low: float, high: float) -> float | None:
    value = said.get(key)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or math.isinf(value):
        raise ValueError(
            f"{path}: {key} {shown(value)} is not in [{low}, {high}]; mend or remove it"
        )
    return float(value)
