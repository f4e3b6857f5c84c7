"""The model types that are served, by their name in config.json."""

from workers.config_json.model_types import ModelType
from workers.families import (
    afmoe,
    deepseek_v2,
    deepseek_v3,
    dots1,
    ernie4_5_moe,
    exaone_moe,
    flex_olmo,
    glm4_moe,
    glm4_moe_lite,
    granitemoe,
    hunyuan_v1_moe,
    laguna,
    mellum,
    minimax_m2,
    mistral4,
    mixtral,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3,
    qwen3_5_moe,
    qwen3_next,
    qwen3_vl_moe,
    solar_open,
)

_FAMILIES = (
    afmoe,
    deepseek_v2,
    deepseek_v3,
    dots1,
    ernie4_5_moe,
    exaone_moe,
    flex_olmo,
    glm4_moe,
    glm4_moe_lite,
    granitemoe,
    hunyuan_v1_moe,
    laguna,
    mellum,
    minimax_m2,
    mistral4,
    mixtral,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3,
    qwen3_5_moe,
    qwen3_next,
    qwen3_vl_moe,
    solar_open,
)

MODEL_TYPES: dict[str, ModelType] = {
    name: entry for family in _FAMILIES for name, entry in family.TYPES.items()
}
