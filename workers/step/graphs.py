"""CUDA graphs of steps, one per padded shape.

Owns which shapes are captured, the captures and their replay. Knows nothing of the model: it
captures a function of a staged batch, whose columns lie at addresses that depend on the shape
alone. Rows of padding have slot -1: `workers.attention.kernels.qk_rope` stores no keys for them,
and no expert computes them (`num_valid`).
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Mapping

import torch

from moe.base.workspace import Workspace
from switchyard.worker.v1 import worker_pb2
from workers.step.batch import BatchBuilder, BatchShape, DeviceBatch

Forward = Callable[[DeviceBatch], torch.Tensor]

# Steps with a prefill of more tokens are bound by the device, if the host launches kernels in time.
_MIXED_TOKENS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 2048)
# Of a step that is this full at least padding costs less than a slow host does.
_FULL = 15 / 16
# In a captured mixed step one program per key head reads a decode's whole context.
_MIXED_CONTEXT = 4096


def batch_sizes(largest: int) -> list[int]:
    """Decode sizes to capture: padding is at most a third up to 16 rows, a fifth beyond 64."""
    sizes = [1, 2, 3, 4, 6, 8, 12, 16, *range(24, 65, 8), *range(80, 129, 16)]
    sizes += [160, 192, 224, 256, *range(320, largest, 64)]
    return [*(size for size in sizes if size < largest), largest]


def mixed_sizes(max_tokens: int) -> list[int]:
    """Tokens of steps with prefills to capture: small ones, and full ones."""
    return [*(size for size in _MIXED_TOKENS if size < max_tokens), max_tokens]


@dataclasses.dataclass(frozen=True, slots=True)
class Captured:
    """A graph and what it writes."""

    graph: torch.cuda.CUDAGraph
    out: torch.Tensor


class StepGraphs:
    """Captured steps. Everything runs on the stream that was current at `capture`.

    Attributes:
        decodes: sizes of steps of decodes alone, ascending.
        mixed: tokens of steps with prefills, ascending.
        num_allocations: of device memory while capturing; 0 where every buffer is a workspace's.
    """

    def __init__(self, captured: Mapping[BatchShape, Captured], num_allocations: int) -> None:
        self.decodes = sorted(shape.tokens for shape in captured if shape.decodes)
        self.mixed = sorted(shape.tokens for shape in captured if not shape.decodes)
        self.num_allocations = num_allocations
        self._captured = captured

    @classmethod
    def capture(
        cls,
        forward: Forward,
        builder: BatchBuilder,
        workspace: Workspace,
        *,
        decodes: list[int],
        mixed: list[int],
    ) -> StepGraphs:
        """Run each shape once, which compiles its kernels and grows its buffers, then freeze the
        workspace and capture each. Every rank of a group must call it at the same time.
        """
        pool = torch.cuda.graph_pool_handle()
        shapes = [BatchShape(tokens, decodes=False) for tokens in sorted(mixed, reverse=True)]
        shapes += [BatchShape(tokens, decodes=True) for tokens in sorted(decodes, reverse=True)]
        for shape in shapes:
            forward(builder.build(_no_rows(), shape))
        torch.cuda.synchronize()
        workspace.freeze()
        builder.columns.freeze()
        captured, num_allocations = {}, 0
        for shape in shapes:
            captured[shape], allocated = capture_shape(forward, builder, shape, pool)
            num_allocations += allocated
        torch.cuda.synchronize()
        return cls(captured, num_allocations)

    def shape_for(self, step: worker_pb2.StepRequest) -> BatchShape | None:
        """The shape a step is padded to; None: it has none. All ranks choose the same: mixed
        shapes, which depend on the replica's own positions, are captured with one replica alone.
        """
        tokens = step.max_replica_tokens
        sizes = self.decodes if step.decode_only else self.mixed
        if not sizes or tokens > sizes[-1]:
            return None
        size = sizes[bisect_left(sizes, tokens)]
        is_device_bound = size > _MIXED_TOKENS[-1] and tokens < _FULL * size
        if not step.decode_only and (is_device_bound or _longest_decode(step) > _MIXED_CONTEXT):
            return None
        return BatchShape(size, decodes=step.decode_only)

    def replay(self, shape: BatchShape) -> torch.Tensor:
        """Start the graph on what was staged last; what `forward` returned, at its fixed place."""
        captured = self._captured[shape]
        captured.graph.replay()
        return captured.out


NO_GRAPHS = StepGraphs({}, 0)
"""Every step is launched kernel by kernel."""


def capture_shape(
    forward: Forward, builder: BatchBuilder, shape: BatchShape, pool: torch.cuda._POOL_HANDLE
) -> tuple[Captured, int]:
    """The graph of a shape, and how often it allocated device memory."""
    batch = builder.build(_no_rows(), shape)
    graph = torch.cuda.CUDAGraph()
    # Other threads, gRPC's and NCCL's, may call CUDA meanwhile.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        before = _allocations()
        out = forward(batch)
        allocated = _allocations() - before
    finally:
        graph.capture_end()
    return Captured(graph, out), allocated


def _longest_decode(step: worker_pb2.StepRequest) -> int:
    return max(step.positions[: step.num_decodes], default=0) + 1


def _no_rows() -> worker_pb2.StepRequest:
    """A step that is all padding."""
    return worker_pb2.StepRequest()


def _allocations() -> int:
    return int(torch.cuda.memory_stats().get("allocation.all.allocated", 0))
