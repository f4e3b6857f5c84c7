"""Snapshots of a rank's expert counts, in a form that adds up over the group.

Owns which counts a rank reports, so that the sum over all ranks has each token once for each of its
experts. Does not count: `moe.expert_load` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from moe.base.parallel import ParallelConfig
from moe.expert_load import ExpertCounters
from switchyard.worker.v1 import worker_pb2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A copy of the counts between two steps, still on the device.

    Attributes:
        load_LE: int64 [layers, experts].
        copied: the event behind the copy; None on a CPU.
    """

    layers: Sequence[int]
    load_LE: torch.Tensor
    copied: torch.cuda.Event | None

    def answer(self) -> worker_pb2.GetExpertLoadResponse:
        """Wait for the copy and put it into a message. Any thread may call it."""
        if self.copied is not None:
            self.copied.synchronize()
        return worker_pb2.GetExpertLoadResponse(
            layers=self.layers,
            num_experts=self.load_LE.shape[1],
            tokens=self.load_LE.flatten().tolist(),
        )


class LoadReport:
    """Takes snapshots of one rank's counts.

    Where the tokens of a replica are on all its ranks, each has counted all of them, and the first
    reports. Where tokens are exchanged, a rank has counted routes that came to it, and reports
    those of the experts it holds.

    Args:
        load: None for a dense model.
        moe_layers: for each layer of the model, whether it is sparse.
    """

    def __init__(
        self,
        load: ExpertCounters | None,
        moe_layers: Sequence[bool],
        parallel: ParallelConfig,
        tp_rank: int,
    ) -> None:
        self._load = load
        self._layers = [layer for layer, sparse in enumerate(moe_layers) if sparse]
        self._counts = slice(None)
        if load is not None and not parallel.tokens_replicated:
            self._counts = slice(load.first_local, load.first_local + load.num_local)
        elif tp_rank:
            self._counts = slice(0)

    @torch.inference_mode()
    def snapshot(self) -> Snapshot | None:
        """Copy the counts; None for a dense model. The thread that launches steps calls it between
        two of them, so that the device copies between the two."""
        if self._load is None:
            return None
        counted = self._load.load_LE
        load_LE = torch.zeros_like(counted)
        load_LE[:, self._counts] = counted[:, self._counts]
        copied = torch.cuda.Event() if counted.is_cuda else None
        if copied is not None:
            copied.record()
        return Snapshot(layers=self._layers, load_LE=load_LE, copied=copied)
