"""CUDA graphs of decode steps, one a padded batch size.

Owns which sizes are captured, the captures and their replay. Knows nothing of the model: it captures
a function of a staged batch, whose columns lie at addresses that depend on the size alone.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable

import torch

from switchyard.worker.v1 import worker_pb2
from workers.batch import BatchBuilder, DeviceBatch

Forward = Callable[[DeviceBatch], torch.Tensor | None]


def batch_sizes(largest: int) -> list[int]:
    """Sizes to capture: padding is at most a third up to 16 rows, a fifth beyond 64."""
    sizes = [1, 2, 3, 4, 6, 8, 12, 16, *range(24, 65, 8), *range(80, 129, 16)]
    sizes += [160, 192, 224, 256, *range(320, largest, 64)]
    return [*(size for size in sizes if size < largest), largest]


@dataclasses.dataclass(frozen=True, slots=True)
class _Captured:
    """A graph and the logits it writes."""

    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor


class DecodeGraphs:
    """Captured decode steps. Everything runs on the stream that was current at `capture`.

    Attributes:
        sizes: ascending.
        num_allocations: of device memory while capturing; 0 where every buffer is a workspace's.
    """

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sorted(sizes)
        self.num_allocations = 0
        self._captured: dict[int, _Captured] = {}

    def capture(self, forward: Forward, builder: BatchBuilder) -> None:
        """Run each size once, which compiles its kernels and grows its buffers, then capture it.

        Largest first, so that buffers are at their final places before the first capture. Every
        rank of a group must call it at the same time.
        """
        pool = torch.cuda.graph_pool_handle()
        descending = self.sizes[::-1]
        for size in descending:
            forward(builder.build(_no_rows(), pad_to=size))
        torch.cuda.synchronize()
        before = _allocations()
        for size in descending:
            self._captured[size] = _capture(forward, builder, size, pool)
        self.num_allocations = _allocations() - before
        torch.cuda.synchronize()

    def size_for(self, step: worker_pb2.StepRequest) -> int | None:
        """The size a step is padded to, the same on every rank; None: it is no decode of all
        replicas, or larger than any capture."""
        tokens = step.max_replica_tokens
        if not step.decode_only or not self._captured or tokens > self.sizes[-1]:
            return None
        return self.sizes[bisect_left(self.sizes, tokens)]

    def replay(self, size: int) -> torch.Tensor:
        """Start the graph on what was staged last; logits ``[size, V]`` at their fixed place."""
        captured = self._captured[size]
        captured.graph.replay()
        return captured.logits


def _capture(
    forward: Forward, builder: BatchBuilder, size: int, pool: tuple[int, int]
) -> _Captured:
    batch = builder.build(_no_rows(), pad_to=size)
    graph = torch.cuda.CUDAGraph()
    # Other threads, gRPC's and NCCL's, may call CUDA meanwhile.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        logits = forward(batch)
    finally:
        graph.capture_end()
    assert logits is not None
    return _Captured(graph, logits)


def _no_rows() -> worker_pb2.StepRequest:
    """A step that is all padding."""
    return worker_pb2.StepRequest(decode_only=True)


def _allocations() -> int:
    return int(torch.cuda.memory_stats().get("allocation.all.allocated", 0))
