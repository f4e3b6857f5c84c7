"""The architectures by name; workers/config.py chooses one by config.json's model_type."""

from workers.models.qwen3 import Qwen3ForCausalLM
from workers.models.qwen3_moe import Qwen3MoeForCausalLM

MODELS = {
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
    "Qwen3MoeForCausalLM": Qwen3MoeForCausalLM,
}
