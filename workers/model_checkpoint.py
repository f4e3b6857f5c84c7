"""The checkpoint of a model: the tensors of its folder that are served, and what their headers say
of a 4-bit format, and of packed experts, that config.json does not.

Torch-free. Knows no names of modules.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from moe.base.int4_format import Int4Format
from workers.checkpoint import Checkpoint
from workers.config_json.model_config import ModelConfig

_SCALE_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def open_checkpoint(folder: Path, config: ModelConfig) -> tuple[Checkpoint, ModelConfig]:
    """The folder's headers, and the model with its weights as these say.

    Raises:
        ValueError: as `Checkpoint` does.
    """
    checkpoint = Checkpoint(
        folder,
        fp8=config.reads_fp8,
        int4=config.reads_int4,
        left_out=config.left_out,
        aliases=config.aliases,
    )
    return checkpoint, with_headers(_with_experts(config, checkpoint), checkpoint)


def with_headers(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """The model with its weights as they stand in the folder: the type of their scales, and whether
    inputs have the number of their group beside them. All must be as the first ones are."""
    if config.quantization is None or not config.reads_int4:
        return config
    int4 = config.quantization.weight_format
    assert isinstance(int4, Int4Format)
    scales = checkpoint.type_of(f".{int4.scale_suffix}")
    int4 = dataclasses.replace(
        int4,
        scale_type=_SCALE_TYPES.get(scales or "", int4.scale_type),
        has_group_index=checkpoint.type_of(".g_idx") is not None,
    )
    quantization = dataclasses.replace(config.quantization, weight_format=int4)
    return dataclasses.replace(config, quantization=quantization)


def _with_experts(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """Whether experts that stand in two tensors are turned, by the shape of the first one."""
    moe = config.moe
    if moe is None:
        return config
    width, hidden = 2 * moe.intermediate_size, moe.hidden_size
    first = checkpoint.shape_of(f".{moe.names.packed[0]}")
    if width == hidden or first != (moe.num_experts, hidden, width):
        return config
    names = dataclasses.replace(moe.names, is_turned=True)
    return dataclasses.replace(config, moe=dataclasses.replace(moe, names=names))
