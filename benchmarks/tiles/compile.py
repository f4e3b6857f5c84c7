"""Compiles the kernels of many tiles side by side, into Triton's cache on disk.

Owns the processes. A kernel is compiled by running it on a small problem, so what a device cannot
take shows here too. Does not know which tiles are worth it.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from benchmarks import report
from benchmarks.gemm_shapes import ExpertShape, LinearShape
from benchmarks.tiles.problems import ExpertProblem, LinearProblem, made_format, make_weights
from benchmarks.tiles.tasks import Job
from benchmarks.tiles.timing import REFUSALS
from moe.base.context import KernelContext, make_context
from moe.base.tiles import MANY_ROWS

_MOST_PROCESSES = 14
_PROCESS_BYTES = 4 << 30  # of the device's memory that one may need


def compile_jobs(
    wanted: list[Job], dtype: torch.dtype, timeout: float, *, weights: str | None = None
) -> tuple[set[Job], dict[Job, str]]:
    """Those that compile and fit within `timeout` seconds, and what the others say; for
    `weights` as of `made_format`."""
    free, _ = torch.cuda.mem_get_info()
    cores = len(os.sched_getaffinity(0)) - 1
    processes = max(1, min(_MOST_PROCESSES, cores, free // _PROCESS_BYTES, len(wanted)))
    ready: set[Job] = set()
    refused: dict[Job, str] = {}
    with (
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
        report.progress() as bar,
    ):
        futures = {pool.submit(compile_job, job, dtype, weights=weights): job for job in wanted}
        task = bar.add_task("compile", total=len(wanted))
        try:
            for future in as_completed(futures, timeout=timeout):
                bar.advance(task)
                error = future.result()
                if error is None:
                    ready.add(futures[future])
                else:
                    refused[futures[future]] = error
        except TimeoutError:
            pool.shutdown(wait=False, cancel_futures=True)
        except BrokenProcessPool:
            print("a compiling process was killed: less is tried", file=sys.stderr)
    return ready, refused


def compile_job(
    job: Job,
    dtype: torch.dtype,
    context: KernelContext | None = None,
    *,
    weights: str | None = None,
) -> str | None:
    """Compile a kernel into Triton's cache on disk by running it on a small problem: what it says
    where it cannot be. For processes of their own, which make their `context`."""
    device = torch.device("cuda") if context is None else context.workspace.device
    context = context or make_context(device, dtype)
    try:
        tokens = 1 + job.many * (MANY_ROWS - 1)
        problem = _small(job.shape, tokens, dtype, device, context, weights)
        problem.calls(job.op, job.tiles)[0]()
        if device.type == "cuda":
            torch.cuda.synchronize()
    except REFUSALS as error:
        return f"{type(error).__name__}: {error}"
    return None


def _small(
    shape: ExpertShape | LinearShape,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    context: KernelContext,
    weights: str | None,
) -> ExpertProblem | LinearProblem:
    """Few tokens, and no more experts than it goes to: kernels do not know how many there are."""
    made = made_format(shape, weights)
    if isinstance(shape, LinearShape):
        w = make_weights((shape.outputs, shape.inputs), 1, dtype, device, made)
        return LinearProblem(shape, tokens, w, context)
    num_ranks = 1 if shape.num_local == shape.num_experts else 2
    E, width, hidden = shape.top_k, shape.width, shape.hidden
    small = dataclasses.replace(shape, num_experts=num_ranks * E, num_local=E)
    w13 = make_weights((E, 2 * width, hidden), 1, dtype, device, made)
    w2 = make_weights((E, hidden, width), 1, dtype, device, made)
    return ExpertProblem(small, tokens, w13, w2, context)
