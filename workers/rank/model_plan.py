"""Whether a model is its checkpoint's, and whether a rank can hold its share, told before any of it
is made.

Builds the model on torch's meta device, where tensors have shapes and no memory. Knows no
architecture.
"""

from __future__ import annotations

import dataclasses

import torch

from moe.base.parallel import ParallelConfig
from moe.config import resolve_runner
from workers.checkpoint import Checkpoint
from workers.config_json.model_config import ModelConfig
from workers.distributed import SINGLE, expert_groups
from workers.models.base import BuildContext
from workers.models.decoder import Decoder
from workers.weight_loading import check_tensors

_NOWHERE = torch.device("meta")


def check_checkpoint(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Refuse a model that its checkpoint does not fit: names and shapes are those of any layout.

    Raises:
        ValueError: one line naming the tensor, and both shapes.
    """
    alone = ParallelConfig(tp=1, dp=1, ep=1, backend="disabled", reason="")
    build = BuildContext(
        groups=SINGLE,
        expert_groups=expert_groups(SINGLE, alone),
        parallel=alone,
        moe_runner=resolve_runner("auto"),
        max_positions=1,
        max_tokens=1,
        context=None,
        dtype=torch.float32,
        device=_NOWHERE,
        packed_experts=checkpoint.packed_experts,
        packed_scales=checkpoint.packed_scales,
        quantization=config.quantization,
    )
    model = Decoder(config, build)
    check_tensors(model.checkpoint_slices(), checkpoint, ignore=model.tied_weights)


def check_plan(config: ModelConfig, build: BuildContext, *, unused_bytes: int) -> None:
    """Refuse a model that does not fit this rank.

    Args:
        unused_bytes: of the device that the model is to lie on.

    Raises:
        ValueError: one line naming what the model takes and what there is.
    """
    nowhere = dataclasses.replace(build, device=_NOWHERE, context=None)
    module = Decoder(config, nowhere)
    weights = sum(each.nbytes for each in module.parameters())
    tables = sum(each.nbytes for each in module.buffers())
    if weights + tables > unused_bytes:
        smaller = "" if build.quantization else "pass --quantization fp8, "
        raise ValueError(
            f"a rank's weights take {weights / 2**30:.1f} GiB and its tables of "
            f"{build.max_positions} positions {tables / 2**30:.1f} GiB, and {build.device} has "
            f"{unused_bytes / 2**30:.1f} GiB to spare; {smaller}raise --tp, lower --max-model-len, "
            "or serve a smaller model"
        )
