"""From a staged batch to what a CUDA graph of its shape holds: the model, run on its cache.

Owns what of a step is captured, and so every address that graphs keep beyond the batch's. Knows
nothing of graphs, sampling or the way back to the host.
Shapes: T tokens of the step, D rows that draw, H hidden, V vocabulary, L sparse layers.
"""

from __future__ import annotations

import torch

from moe.expert_load import StepSize
from workers.attention.kv_cache import KVCache
from workers.models.base import Model
from workers.step.batch import DeviceBatch


class StepForward:
    """Runs a model on one cache.

    Args:
        out_hits_L: int32, takes how many of this rank's experts a step hit.
    """

    def __init__(self, model: Model, cache: KVCache, out_hits_L: torch.Tensor) -> None:
        self.model = model
        self.cache = cache
        self.expert_load = model.expert_load
        self.out_hits_L = out_hits_L

    def __call__(self, batch: DeviceBatch) -> torch.Tensor:
        """Logits ``[D, V]`` of a step padded to decodes, else the last hidden states, as
        `Model.forward` returns them."""
        step, last = batch.forward, batch.forward.of_drawn
        hidden = self.model.forward(step, self.cache)
        if self.expert_load is not None:
            self.expert_load.count(
                StepSize(len(step.ids_T), step.max_tokens),
                StepSize(len(hidden), last.max_tokens),
                out_hits_L=self.out_hits_L,
            )
        return self.model.logits(hidden) if batch.all_draw else hidden
