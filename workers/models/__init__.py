"""The architectures by name; workers/model_types.py names one for each model_type."""

from collections.abc import Callable

from workers.model_config import ModelConfig
from workers.models.base import BuildContext, Model
from workers.models.qwen3 import Qwen3ForCausalLM
from workers.models.qwen3_moe import Qwen3MoeForCausalLM

MODELS: dict[str, Callable[[ModelConfig, BuildContext], Model]] = {
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
    "Qwen3MoeForCausalLM": Qwen3MoeForCausalLM,
}
