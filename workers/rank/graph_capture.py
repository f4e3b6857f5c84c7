"""Whether a rank captures its steps in CUDA graphs, and which; `workers.step.graphs` does it.

Owns these rules and the check of the memory that graphs take.
"""

from __future__ import annotations

import logging

import torch

from moe.config import resolve_runner
from workers.attention.kv_cache import GRAPH_RESERVE_BYTES
from workers.config import WorkerConfig
from workers.models.base import BuildContext
from workers.step.batch import BatchBuilder
from workers.step.forward import StepForward
from workers.step.graphs import StepGraphs, batch_sizes, mixed_sizes

log = logging.getLogger(__name__)


def capturable(config: WorkerConfig, build: BuildContext) -> bool:
    """Whether steps are to be captured, and can be."""
    return config.cuda_graphs == "on" and launches_blindly(config, build)


def launches_blindly(config: WorkerConfig, build: BuildContext) -> bool:
    """Whether the host launches a step's kernels whatever they compute: no exchange or MoE runner
    reads numbers from the device."""
    return (
        build.device.type == "cuda"
        and not build.parallel.needs_host_sync
        and resolve_runner(config.moe_runner) != "legacy"
    )


@torch.inference_mode()
def capture_graphs(
    forward: StepForward, builder: BatchBuilder, config: WorkerConfig, build: BuildContext
) -> StepGraphs:
    """Capture the steps; raises ValueError where they take more than their reserve."""
    assert build.context is not None
    workspace = build.context.workspace
    free_before, _ = torch.cuda.mem_get_info()
    graphs = StepGraphs.capture(
        forward,
        builder,
        workspace,
        decodes=batch_sizes(config.max_batch_size),
        mixed=mixed_sizes(build.max_tokens) if build.parallel.dp == 1 else [],
    )
    free_after, _ = torch.cuda.mem_get_info()
    num_graphs = len(graphs.decodes) + len(graphs.mixed)
    if free_before - free_after > GRAPH_RESERVE_BYTES:
        raise ValueError(
            f"{num_graphs} CUDA graphs take {(free_before - free_after) / 2**30:.1f} GiB, "
            f"{GRAPH_RESERVE_BYTES / 2**30:.0f} GiB are kept for them; lower --max-batch-size or "
            "use --cuda-graphs off"
        )
    log.info(
        "%d CUDA graphs take %d MiB, workspaces %d MiB",
        num_graphs,
        (free_before - free_after) >> 20,
        workspace.num_bytes >> 20,
    )
    return graphs
