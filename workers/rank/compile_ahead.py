"""Kernels compiled side by side before a rank runs any: one after the other, a start with an empty
cache compiles for a minute and more.

Owns a pass of the warm-up's steps whose launches compile and run nothing. Knows nothing of what
kernels compute; what it misses is compiled where it is first launched.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from triton import AsyncCompileMode, knobs
from triton.runtime.jit import JITFunction

from switchyard.worker.v1 import worker_pb2
from workers.attention.kv_cache import CacheSizes
from workers.config import WorkerConfig
from workers.distributed import ranks_here
from workers.models.base import BuildContext, Model
from workers.rank.kv_sizing import warm_up_runner, warm_up_shape
from workers.rank.runner_factory import RunnerFactory
from workers.rank.warm_up import warm_up_steps
from workers.step.block_tables import in_groups
from workers.step.runner import Runner

log = logging.getLogger(__name__)

_MOST_THREADS = 16


@torch.inference_mode()
def compile_ahead(
    factory: RunnerFactory,
    model: Model,
    sizes: CacheSizes,
    config: WorkerConfig,
    build: BuildContext,
) -> None:
    """Compile what the warm-up launches, on a rank that `launches_blindly`.

    Args:
        model: layers of each kind of the factory's.
    """
    began = time.perf_counter()
    shape = warm_up_shape(config, build)
    runner = warm_up_runner(factory, sizes, shape, model)
    threads = min(_MOST_THREADS, max(1, len(os.sched_getaffinity(0)) // ranks_here()))
    steps = warm_up_steps(**shape)
    with ThreadPoolExecutor(threads, thread_name_prefix="compile") as pool, _misses() as missed:
        _pass(runner, itertools.islice(steps, 1), pool)
        if not missed:  # a start before this one has left the kernels, which load as they are used
            return
        _pass(runner, steps, pool)
    seconds = time.perf_counter() - began
    log.info("kernels are ready after %.1f s on %d threads", seconds, threads)


def _pass(
    runner: Runner, steps: Iterable[worker_pb2.StepRequest], pool: ThreadPoolExecutor
) -> None:
    """Launch the steps' kernels without running them, until all of them are compiled."""
    num_groups = runner.forward.model.layer_groups.num_groups
    # A kernel that cannot be compiled fails where it is launched, with the reason.
    with AsyncCompileMode(pool, ignore_errors=True), _launches_compile():
        for step in steps:
            runner.launch(in_groups(step, num_groups))


@contextlib.contextmanager
def _misses() -> Iterator[list[Any]]:
    """Sources that are compiled meanwhile since Triton's cache does not have them."""
    sources: list[Any] = []

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            sources.append(src)

    before, knobs.compilation.listener = knobs.compilation.listener, listen
    try:
        yield sources
    finally:
        knobs.compilation.listener = before


@contextlib.contextmanager
def _launches_compile() -> Iterator[None]:
    """Inside, ``kernel[grid](...)`` is ``kernel.warmup(...)``."""

    def launcher(kernel: Any, grid: Any) -> Any:
        def compile_only(*args: Any, **options: Any) -> None:
            kernel.run(*args, grid=grid, warmup=True, **options)

        return compile_only

    JITFunction.__getitem__ = launcher
    try:
        yield
    finally:
        del JITFunction.__getitem__  # the one it inherits
