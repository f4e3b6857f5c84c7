"""How many blocks the KV cache has, and how long a prefill takes: both are measured at the start.

Knows neither flags' defaults nor how a model is built.
"""

from __future__ import annotations

import logging
import time

import torch

from workers.attention.kv_cache import (
    CacheSizes,
    KVCache,
    blocks_that_fit,
    free_bytes,
)
from workers.config import WorkerConfig
from workers.config_json.model_config import ModelConfig
from workers.distributed import ranks_here
from workers.linear_attention.states import StateSizes
from workers.models.base import BuildContext, Model
from workers.rank.runner_factory import RunnerFactory
from workers.rank.warm_up import made_up_prefill, warm_up_blocks, warm_up_steps
from workers.step.block_tables import in_groups
from workers.step.runner import Runner

log = logging.getLogger(__name__)

_CPU_WARM_UP_TOKENS = 16
_TIMED_TOKENS = {"cuda": 2048, "cpu": 64}


def num_cache_blocks(
    factory: RunnerFactory, sizes: CacheSizes, config: WorkerConfig, build: BuildContext
) -> int:
    """Run made-up steps on a small cache, then count the blocks that fit.

    Returns:
        The blocks of the cache to allocate, the same number on every rank.
    """
    workspace = _warm_up(factory, sizes, warm_up_shape(config, build))
    if build.device.type == "cuda":
        torch.cuda.empty_cache()  # in pieces that the cache could not use
    budget = free_bytes(build.device, config.memory_fraction, workspace, ranks_here())
    if sizes.states is not None:
        budget = _beside_states(budget, sizes.states, config)
    return build.groups.minimum(
        blocks_that_fit(
            config,
            build.max_positions,
            sizes.bytes_per_block,
            budget,
            factory.model.layer_groups.num_groups,
        )
    )


def _beside_states(budget: int, states: StateSizes, config: WorkerConfig) -> int:
    """What states leave for blocks.

    Raises:
        ValueError: nothing.
    """
    count, size = states.num_states, states.num_bytes / 2**30
    log.info("%d states of layers without keys take %.1f GiB", count, size)
    if states.num_bytes >= budget:
        raise ValueError(
            f"--memory-fraction {config.memory_fraction} leaves {budget / 2**30:.1f} GiB for the "
            f"KV cache and states, of which {count} take {size:.1f} GiB: one for each of "
            f"--max-batch-size {config.max_batch_size} and {count - config.max_batch_size} kept; "
            "lower --max-batch-size or --kept-states"
        )
    return budget - states.num_bytes


def time_prefill(runner: Runner, config: WorkerConfig, build: BuildContext) -> tuple[int, float]:
    """Run a made-up prefill twice on all ranks, which are warm.

    Returns:
        Its tokens, and the seconds that the second run took on the slowest rank; 0 and 0.0 where
        kernels are interpreted, whose time says nothing.
    """
    if build.context is not None and build.device.type != "cuda":
        return 0, 0.0
    num_groups = runner.forward.model.layer_groups.num_groups
    num_tokens = min(
        build.max_tokens,
        _TIMED_TOKENS[build.device.type],
        runner.forward.cache.num_blocks // num_groups * config.block_size,
        build.max_positions,
    )
    step = made_up_prefill(num_tokens, 1, build.max_positions, config.block_size)
    in_groups(step, num_groups)
    runner.launch(step).result()
    began = time.perf_counter()
    runner.launch(step).result()
    nanoseconds = round((time.perf_counter() - began) * 1e9)
    return num_tokens, -build.groups.minimum(-nanoseconds) / 1e9


def warm_up_shape(config: WorkerConfig, build: BuildContext) -> dict[str, int]:
    """The largest steps on CUDA; on a CPU, where nothing is compiled, small ones."""
    on_cuda = build.device.type == "cuda"
    return {
        "num_tokens": build.max_tokens if on_cuda else min(_CPU_WARM_UP_TOKENS, build.max_tokens),
        "num_sequences": config.max_batch_size if on_cuda else 1,
        "max_model_len": build.max_positions,
        "block_size": config.block_size,
    }


def cache_sizes(
    model: Model, model_config: ModelConfig, block_size: int, dtype: torch.dtype, num_states: int
) -> CacheSizes:
    """Of a rank's model; ``dtype`` is that of an entry's numbers."""
    return CacheSizes(
        num_layers=model.layer_groups.size,
        block_size=block_size,
        num_kv_heads=model.num_kv_heads,
        head_dim=model_config.cached[0].key_width,
        v_head_dim=model_config.cached[0].value_width,
        dtype=dtype,
        states=model.state_sizes(num_states),
    )


def warm_up_runner(
    factory: RunnerFactory, sizes: CacheSizes, shape: dict[str, int], model: Model | None = None
) -> Runner:
    """On a cache of its own, for steps of a warm-up; ``model`` as in `RunnerFactory.forward`."""
    num_groups = factory.model.layer_groups.num_groups
    cache = KVCache(sizes, num_groups * warm_up_blocks(**shape), factory.device)
    return factory.runner(factory.forward(cache, model))


def _warm_up(factory: RunnerFactory, sizes: CacheSizes, shape: dict[str, int]) -> int:
    """Run made-up steps on a cache of their own. It is freed, so its memory counts as available for
    the real one.

    Returns:
        Bytes of device memory they took at their peak beyond what stays, 0 on a CPU.
    """
    device = factory.device
    num_groups = factory.model.layer_groups.num_groups
    runner = warm_up_runner(factory, sizes, shape)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    for step in warm_up_steps(**shape):
        runner.launch(in_groups(step, num_groups)).result()
    if not on_cuda:
        return 0
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
