"""The model types that are served, by their name in config.json."""

from workers.families import qwen3
from workers.model_types import ModelType

MODEL_TYPES: dict[str, ModelType] = {**qwen3.TYPES}
