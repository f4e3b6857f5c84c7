"""Whether a rank can hold its share of a model, told before any of it is made.

Builds the model on torch's meta device, where tensors have shapes and no memory. Knows no
architecture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from workers.checkpoint import Checkpoint
from workers.model_config import ModelConfig
from workers.models.base import BuildContext, Model
from workers.weight_loading import check_tensors


def check_plan(
    architecture: Callable[[ModelConfig, BuildContext], Model],
    config: ModelConfig,
    build: BuildContext,
    checkpoint: Checkpoint | None,
    *,
    unused_bytes: int,
) -> None:
    """Refuse a model that its checkpoint does not fit, or that does not fit this rank.

    Args:
        checkpoint: None: weights are made up.
        unused_bytes: of the device that the model is to lie on.

    Raises:
        ValueError: one line naming the tensor, or what the model takes and what there is.
    """
    nowhere = dataclasses.replace(build, device=torch.device("meta"), context=None)
    model = architecture(config, nowhere)
    if checkpoint is not None:
        check_tensors(model.checkpoint_slices(), checkpoint, ignore=model.tied_weights)
    module = cast(nn.Module, model)
    weights = sum(each.nbytes for each in module.parameters())
    tables = sum(each.nbytes for each in module.buffers())
    if weights + tables > unused_bytes:
        raise ValueError(
            f"a rank's weights take {weights / 2**30:.1f} GiB and its tables of "
            f"{build.max_positions} positions {tables / 2**30:.1f} GiB, and {build.device} has "
            f"{unused_bytes / 2**30:.1f} GiB to spare; raise --tp, lower --max-model-len, or serve "
            "a smaller model"
        )
