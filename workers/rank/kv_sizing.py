"""From a runner that is built to one that is ready: warm-up → KV cache → graphs.

Owns what is measured in between. Knows neither flags' defaults nor how a model is built.
"""

from __future__ import annotations

import logging
import time

import torch

from moe.config import resolve_runner
from workers.attention.kv_cache import (
    GRAPH_RESERVE_BYTES,
    KVCache,
    blocks_that_fit,
    bytes_per_block,
    free_bytes,
)
from workers.config import WorkerConfig
from workers.distributed import ranks_here
from workers.model_config import ModelConfig
from workers.models.base import Placement
from workers.rank.warm_up import made_up_prefill, warm_up_blocks, warm_up_steps
from workers.step.graphs import StepGraphs, batch_sizes, mixed_sizes
from workers.step.runner import Runner

log = logging.getLogger(__name__)

_CPU_WARM_UP_TOKENS = 16
_TIMED_TOKENS = {"cuda": 2048, "cpu": 64}


def give_cache(
    runner: Runner, config: WorkerConfig, model_config: ModelConfig, place: Placement
) -> int:
    """Run made-up steps on a small cache, then give the runner one of all blocks that fit.

    Returns:
        Its blocks, the same number on every rank.
    """
    sizes = {
        "num_layers": model_config.num_layers,
        "block_size": config.block_size,
        "num_kv_heads": runner.model.num_kv_heads,
        "head_dim": model_config.head_dim,
        "dtype": place.dtype,
    }
    shape = _warm_up_shape(config, place)
    runner.cache = KVCache(num_blocks=warm_up_blocks(**shape), device=place.device, **sizes)
    workspace = _warm_up(runner, shape)
    runner.cache = None  # its memory is part of what may be given away
    if runner.on_cuda:
        torch.cuda.empty_cache()  # in pieces that the cache could not use
    budget = free_bytes(place.device, config.memory_fraction, workspace, ranks_here())
    num_blocks = place.groups.minimum(
        blocks_that_fit(config, place.max_positions, bytes_per_block(**sizes), budget)
    )
    runner.cache = KVCache(num_blocks=num_blocks, device=place.device, **sizes)
    return num_blocks


def capturable(config: WorkerConfig, place: Placement) -> bool:
    """Neither the exchange nor the MoE runner asks the device for numbers."""
    return (
        place.device.type == "cuda"
        and config.cuda_graphs == "on"
        and not place.parallel.routes_vary
        and resolve_runner(config.moe_runner) != "legacy"
    )


@torch.inference_mode()
def capture_graphs(runner: Runner, config: WorkerConfig, place: Placement) -> None:
    """Capture the steps; raises ValueError where they take more than their reserve."""
    workspace = place.context.workspace
    mixed = mixed_sizes(place.max_tokens) if place.parallel.dp == 1 else []
    graphs = StepGraphs(batch_sizes(config.max_batch_size), mixed)
    free_before, _ = torch.cuda.mem_get_info()
    graphs.capture(runner.forward, runner.builder, workspace)
    runner.graphs = graphs
    free_after, _ = torch.cuda.mem_get_info()
    if free_before - free_after > GRAPH_RESERVE_BYTES:
        raise ValueError(
            f"{len(graphs.decodes) + len(graphs.mixed)} CUDA graphs take "
            f"{(free_before - free_after) / 2**30:.1f} GiB, {GRAPH_RESERVE_BYTES / 2**30:.0f} GiB "
            "are kept for them; lower --max-batch-size or use --cuda-graphs off"
        )
    log.info(
        "%d CUDA graphs take %d MiB, workspaces %d MiB",
        len(graphs.decodes) + len(graphs.mixed),
        (free_before - free_after) >> 20,
        workspace.num_bytes >> 20,
    )


def time_prefill(runner: Runner, config: WorkerConfig, place: Placement) -> tuple[int, float]:
    """Run a made-up prefill twice on all ranks, which are warm.

    Returns:
        Its tokens, and the seconds that the second run took on the slowest rank; 0 and 0.0 where
        kernels are interpreted, whose time says nothing.
    """
    if place.context is not None and not runner.on_cuda:
        return 0, 0.0
    num_tokens = min(
        place.max_tokens,
        _TIMED_TOKENS[place.device.type],
        runner.cache.num_blocks * config.block_size,
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


def _warm_up(runner: Runner, shape: dict[str, int]) -> int:
    """Run made-up steps.

    Returns:
        Bytes of device memory they took at their peak beyond what stays, 0 on a CPU.
    """
    if runner.on_cuda:
        torch.cuda.reset_peak_memory_stats()
    for step in warm_up_steps(**shape):
        runner.launch(step).result()
    if not runner.on_cuda:
        return 0
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
