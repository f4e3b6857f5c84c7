"""How many blocks the KV cache has, which graphs are captured, and how long a prefill takes.

Owns what is measured between loading and the first request. Knows neither flags' defaults nor how a
model is built.
"""

from __future__ import annotations

import logging
import time

import torch

from moe.config import resolve_runner
from workers.attention.kv_cache import (
    GRAPH_RESERVE_BYTES,
    CacheSizes,
    KVCache,
    blocks_that_fit,
    free_bytes,
)
from workers.config import WorkerConfig
from workers.distributed import ranks_here
from workers.models.base import Placement
from workers.rank.runner_factory import RunnerFactory
from workers.rank.warm_up import made_up_prefill, warm_up_blocks, warm_up_steps
from workers.step.batch import BatchBuilder
from workers.step.forward import StepForward
from workers.step.graphs import StepGraphs, batch_sizes, mixed_sizes
from workers.step.runner import Runner

log = logging.getLogger(__name__)

_CPU_WARM_UP_TOKENS = 16
_TIMED_TOKENS = {"cuda": 2048, "cpu": 64}


def num_cache_blocks(
    factory: RunnerFactory, sizes: CacheSizes, config: WorkerConfig, place: Placement
) -> int:
    """Run made-up steps on a small cache, then count the blocks that fit.

    Returns:
        The blocks of the cache to allocate, the same number on every rank.
    """
    workspace = _warm_up(factory, sizes, _warm_up_shape(config, place))
    if place.device.type == "cuda":
        torch.cuda.empty_cache()  # in pieces that the cache could not use
    budget = free_bytes(place.device, config.memory_fraction, workspace, ranks_here())
    return place.groups.minimum(
        blocks_that_fit(config, place.max_positions, sizes.bytes_per_block, budget)
    )


def capturable(config: WorkerConfig, place: Placement) -> bool:
    """Whether steps can be captured: no exchange or MoE runner reads numbers from the device."""
    return (
        place.device.type == "cuda"
        and config.cuda_graphs == "on"
        and not place.parallel.routes_vary
        and resolve_runner(config.moe_runner) != "legacy"
    )


@torch.inference_mode()
def capture_graphs(
    forward: StepForward, builder: BatchBuilder, config: WorkerConfig, place: Placement
) -> StepGraphs:
    """Capture the steps; raises ValueError where they take more than their reserve."""
    assert place.context is not None
    workspace = place.context.workspace
    free_before, _ = torch.cuda.mem_get_info()
    graphs = StepGraphs.capture(
        forward,
        builder,
        workspace,
        decodes=batch_sizes(config.max_batch_size),
        mixed=mixed_sizes(place.max_tokens) if place.parallel.dp == 1 else [],
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


def time_prefill(runner: Runner, config: WorkerConfig, place: Placement) -> tuple[int, float]:
    """Run a made-up prefill twice on all ranks, which are warm.

    Returns:
        Its tokens, and the seconds that the second run took on the slowest rank; 0 and 0.0 where
        kernels are interpreted, whose time says nothing.
    """
    if place.context is not None and place.device.type != "cuda":
        return 0, 0.0
    num_tokens = min(
        place.max_tokens,
        _TIMED_TOKENS[place.device.type],
        runner.forward.cache.num_blocks * config.block_size,
        place.max_positions,
    )
    step = made_up_prefill(num_tokens, 1, place.max_positions, config.block_size)
    runner.launch(step).result()
    began = time.perf_counter()
    runner.launch(step).result()
    nanoseconds = round((time.perf_counter() - began) * 1e9)
    return num_tokens, -place.groups.minimum(-nanoseconds) / 1e9


def _warm_up_shape(config: WorkerConfig, place: Placement) -> dict[str, int]:
    """The largest steps on CUDA; on a CPU, where nothing is compiled, small ones."""
    on_cuda = place.device.type == "cuda"
    return {
        "num_tokens": place.max_tokens if on_cuda else min(_CPU_WARM_UP_TOKENS, place.max_tokens),
        "num_sequences": config.max_batch_size if on_cuda else 1,
        "max_model_len": place.max_positions,
        "block_size": config.block_size,
    }


def _warm_up(factory: RunnerFactory, sizes: CacheSizes, shape: dict[str, int]) -> int:
    """Run made-up steps on a cache of their own, which is gone afterwards: its memory is part of
    what may be given away.

    Returns:
        Bytes of device memory they took at their peak beyond what stays, 0 on a CPU.
    """
    device = factory.device
    cache = KVCache(sizes, warm_up_blocks(**shape), device)
    runner = factory.runner(factory.forward(cache))
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    for step in warm_up_steps(**shape):
        runner.launch(step).result()
    if not on_cuda:
        return 0
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
