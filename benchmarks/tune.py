"""Measures which tiles the GEMMs of a model want on this GPU, and keeps them.

``python -m benchmarks.tune MODEL [--tp N] [--dp N] [--ep N] [--moe-ep-backend B] [--dtype D]
[--seconds 300] [--ship]``

For each GEMM of a rank and a few numbers of tokens: kernels of all candidates are compiled in
processes side by side, then timed in CUDA graphs over several copies of made-up weights, so that
the L2 cache is no help, with routes drawn at random. The fastest whose result is right is kept: of
the two expert GEMMs the pair with the least sum, that of sorting routes included; dense GEMMs pay
for the parts that the next kernel must read, and the library's GEMM is one of the candidates. When
the time is spent, what was not reached stays as it is. Servers on this machine read the result at
their next start; with --ship it goes to the files the project ships.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch
import triton

from benchmarks import report
from benchmarks.gemm_shapes import ExpertShape, LinearShape, expert_shape, linear_shapes
from benchmarks.tile_candidates import Limits, describe
from benchmarks.tile_tasks import Chosen, Deadline, Job, Task, Times, choose, jobs, plan, tables
from benchmarks.tile_timing import (
    REFUSALS,
    ExpertProblem,
    LinearProblem,
    compile_job,
    make_weights,
    num_copies,
    time_us,
)
from moe.config import check_widths, resolve_parallel
from moe.kernels.context import KernelContext, make_context
from moe.kernels.tiles import Tiles, shipped_file, user_file, write_tables
from workers.config import ModelConfig
from workers.roofline import Device, device_ceilings

Shape = ExpertShape | LinearShape

_COMPILE_SHARE = 0.6  # of the time
_MOST_PROCESSES = 14
_PROCESS_BYTES = 4 << 30  # of the device's memory that one may need
_NAMES = {"gate_up": "experts gate·up", "down": "experts down"}


class Tuning:
    """One run: the device, what was compiled, measured and left out."""

    def __init__(self, context: KernelContext, dtype: torch.dtype, deadline: Deadline) -> None:
        self.context, self.dtype, self.deadline = context, dtype, deadline
        self.torch_device = context.workspace.device
        self.device: Device | None = device_ceilings(torch.cuda.get_device_name())
        self.weights: dict[Shape, tuple[torch.Tensor, ...]] = {}
        self.chosen: dict[Task, Chosen] = {}
        self.rows: list[report.Row] = []
        self.counts = dict.fromkeys(("timed", "refused", "wrong", "not reached"), 0)

    def compile(self, wanted: list[Job]) -> set[Job]:
        """Those that compile and fit, as far as the time's share for it goes."""
        free, _ = torch.cuda.mem_get_info()
        cores = len(os.sched_getaffinity(0)) - 1
        processes = max(1, min(_MOST_PROCESSES, cores, free // _PROCESS_BYTES, len(wanted)))
        ready: set[Job] = set()
        with (
            ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
            report.progress() as bar,
        ):
            futures = {pool.submit(compile_job, job, self.dtype): job for job in wanted}
            task = bar.add_task("compile", total=len(wanted))
            try:
                for future in as_completed(futures, timeout=self.deadline.left(_COMPILE_SHARE)):
                    bar.advance(task)
                    if future.result() is None:
                        ready.add(futures[future])
                    else:
                        self.counts["refused"] += 1
            except TimeoutError:
                pool.shutdown(wait=False, cancel_futures=True)
            except BrokenProcessPool:
                print("a compiling process was killed: less is tried", file=sys.stderr)
        return ready

    def measure(self, tasks: list[Task], ready: set[Job]) -> None:
        """Time and choose, task by task, until the time is spent."""
        with report.progress() as bar:
            progress = bar.add_task("measure", total=len(tasks))
            for task in tasks:
                if self.deadline.left():
                    self._settle(task, ready)
                else:
                    self.counts["not reached"] += 1
                bar.advance(progress)

    def _settle(self, task: Task, ready: set[Job]) -> None:
        problem = self._problem(task)
        floors = {op: problem.floor_us(op, self.device) for op in problem.ops}
        times: Times = {op: {} for op in problem.ops}
        for op, tiles in task.order():
            known = task.is_known(op, tiles)
            if known or (tiles and Job(op=op, shape=task.shape, tiles=tiles) in ready):
                self._time(problem, op, tiles, floors[op], times)
        align: dict[int, float] = {}
        if isinstance(problem, ExpertProblem):
            sizes = {tiles.block_m for several in times.values() for tiles in several if tiles}
            align = {m: time_us(problem.align_calls(m), 0.0) for m in sizes if m > 1}
        guesses = {op: times[op].get(task.guess[op]) for op in times}
        before = sum(map(len, times.values()))
        chosen = choose(times, align, problem.is_right)
        self.counts["wrong"] += before - sum(map(len, times.values()))
        if chosen is not None:
            self.chosen[task] = chosen
            self.rows += _rows(task, chosen, times, floors, guesses)

    def _time(
        self,
        problem: ExpertProblem | LinearProblem,
        op: str,
        tiles: Tiles | None,
        floor: float,
        times: Times,
    ) -> None:
        if not self.deadline.left():
            return
        try:
            taken = time_us(problem.calls(op, tiles), floor)
        except REFUSALS:
            torch.cuda.synchronize()  # raises where the device itself is lost
            self.counts["refused"] += 1
            return
        self.counts["timed"] += 1
        times[op][tiles] = taken + problem.charge_us(op, tiles, self.device)

    def _problem(self, task: Task) -> ExpertProblem | LinearProblem:
        shape = task.shape
        if shape not in self.weights:
            self.weights[shape] = self._make(shape)
        if isinstance(shape, ExpertShape):
            w13, w2 = self.weights[shape]
            return ExpertProblem(shape, task.tokens, w13, w2, self.context)
        return LinearProblem(shape, task.tokens, self.weights[shape][0], self.context)

    def _make(self, shape: Shape) -> tuple[torch.Tensor, ...]:
        """Copies that the L2 cache cannot hold, of which a token reads `touched` bytes each."""
        if isinstance(shape, ExpertShape):
            E, width, hidden = shape.num_local, shape.width, shape.hidden
            sizes: tuple[tuple[int, ...], ...] = ((E, 2 * width, hidden), (E, hidden, width))
            read = shape.top_k / shape.num_experts / 3  # by the smaller of the two
        else:
            sizes, read = ((shape.outputs, shape.inputs),), 1.0
        numbers = sum(torch.Size(size).numel() for size in sizes)
        whole = numbers * self.dtype.itemsize
        l2 = torch.cuda.get_device_properties(self.torch_device).L2_cache_size
        copies = num_copies(read * whole, whole, l2, torch.cuda.mem_get_info()[0])
        return tuple(make_weights(size, copies, self.dtype, self.torch_device) for size in sizes)


def main(arguments: list[str] | None = None) -> None:
    """Tune, print one table and write the file."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks.tune needs a CUDA device, and there is none here")
    try:
        config = ModelConfig.from_folder(flags.model)
        config.check_tensor_parallel(flags.tp)
        parallel = resolve_parallel(
            tp=flags.tp,
            dp=flags.dp,
            ep=flags.ep,
            backend=flags.moe_ep_backend,
            has_experts=config.moe is not None,
        )
        if config.moe is not None:
            check_widths(config.moe, parallel)
        dtype = getattr(torch, flags.dtype)
        context = make_context(torch.device("cuda", torch.cuda.current_device()), dtype)
    except ValueError as error:
        parser.error(str(error))
    book = context.tiles
    limits = Limits(shared_bytes=book.shared_bytes, item_size=book.item_size)
    tasks = plan(expert_shape(config, parallel), linear_shapes(config, parallel), book, limits)
    tuning = Tuning(context, dtype, Deadline(flags.seconds))
    tuning.measure(tasks, tuning.compile(jobs(tasks)))
    where = shipped_file if flags.ship else user_file
    path = where(torch.cuda.get_device_name(), triton.__version__)
    write_tables(path, tables(tasks, tuning.chosen, book.dtype))
    _report(flags, tuning, len(tasks), path)


def _report(flags: argparse.Namespace, tuning: Tuning, num_tasks: int, path: Path) -> None:
    layout = f"TP={flags.tp} DP={flags.dp}"
    title = f"Tiles: {flags.model.name}, {layout}, {torch.cuda.get_device_name()}, {flags.dtype}"
    seconds = tuning.deadline.spent
    report.show(title, tuning.rows, flags.json, seconds=seconds, **tuning.counts, file=str(path))
    if len(tuning.chosen) < num_tasks:
        print(
            f"{num_tasks - len(tuning.chosen)} of {num_tasks} GEMMs were not reached in "
            f"{flags.seconds:g} s and stay as they are: give more --seconds"
        )


def _rows(
    task: Task,
    chosen: Chosen,
    times: Times,
    floors: Mapping[str, float],
    guesses: Mapping[str, float | None],
) -> list[report.Row]:
    return [
        {
            "op": _NAMES.get(op) or getattr(task.shape, "name", op),
            "tokens": task.tokens,
            "tiles": describe(tiles),
            "µs": times[op][tiles],
            "floor µs": floors[op] or None,
            "share %": 100 * floors[op] / times[op][tiles] if floors[op] else None,
            "guess µs": guesses[op],
        }
        for op, tiles in chosen.items()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("model", type=Path, help="a folder with config.json")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--dp", type=int, default=1)
    parser.add_argument("--ep", type=int, help="default: all ranks, as `switchyard serve`")
    parser.add_argument("--moe-ep-backend", default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--seconds", type=float, default=300, help="bound of the whole run")
    parser.add_argument("--ship", action="store_true", help="write the file the project ships")
    report.add_flags(parser)
    return parser


if __name__ == "__main__":
    main()
