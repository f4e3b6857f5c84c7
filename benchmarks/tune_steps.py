"""Measures in whole steps which tiles the GEMMs of a model want on this GPU, and keeps them.

``python -m benchmarks.tune_steps MODEL [--weights fp8|int4] [--gemms experts qkv]
[--tokens 1 8 32 64] [--context 1088] [--prefill 1024] [--seconds 300] [--ship]``

What wins alone, as `benchmarks.tune` times it, may lose in its step: it leaves the next kernel more
parts to add, or starts later beside the one before. Here a decode step of made-up weights, or one
of prompts, is captured with one GEMM's tiles changed, and its replays are timed. Candidates are
those of `benchmarks.tune`, whose choice is a good start; they are compiled in processes side by
side. GEMM after GEMM keeps the tiles whose step is the fastest, if by more than chance. Results are
compared with nothing: a start's self-check does that. One rank, one CUDA device.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks import report
from benchmarks.gemm_shapes import ExpertShape, expert_shape, linear_shapes
from benchmarks.kernels import PROMPT, decode_steps, prefill_steps, start_rank
from benchmarks.tiles.candidates import DeviceLimits, describe
from benchmarks.tiles.compile import compile_jobs
from benchmarks.tiles.tasks import Deadline, Entry, Task, by_op, jobs, plan, tables
from benchmarks.tiles.timing import REFUSALS
from benchmarks.tune import ALWAYS_PLAIN, LIMITS, NAMES
from moe.base.context import KernelContext
from moe.base.parallel import resolve_parallel
from moe.base.tile_files import shipped_file, user_file, write_tables
from moe.base.tiles import ExpertTiles, TileTable
from workers.rank.startup import LoadedRank
from workers.step.batch import BatchShape
from workers.step.block_tables import in_groups
from workers.step.graphs import capture_shape

_WARM_UP, _REPLAYS = 3, 12
_CHANCE = 0.002  # of a step's time: as much do equal steps differ
_COMPILE_SHARE = 0.5  # of the time

Measure = Callable[[], float | None]


class CapturedSteps:
    """Times captured steps of one number of tokens on a rank.

    Args:
        context: tokens of each decoding sequence; None: the step is of prompts.
    """

    def __init__(self, rank: LoadedRank, tokens: int, context: int | None) -> None:
        self.runner, self.shape = rank.runner, BatchShape(tokens, decodes=context is not None)
        self.stream = torch.cuda.Stream()
        size = self.runner.builder.block_size
        if context is None:
            steps = prefill_steps(tokens, size, rank.model_config.vocab_size)
        else:
            steps = decode_steps(tokens, context, size)
        num_groups = rank.model.layer_groups.num_groups
        *before, self.step = (in_groups(step, num_groups) for step in itertools.islice(steps, 4))
        for step in before:
            self.runner.launch(step).result()
        torch.cuda.synchronize()

    @torch.inference_mode()
    def milliseconds(self, deadline: Deadline) -> float | None:
        """Of a replay, the median; None where the device refuses the tiles in use, or the time is
        spent."""
        if not deadline.left():
            return None
        forward, builder = self.runner.forward, self.runner.builder
        with torch.cuda.stream(self.stream):
            try:
                forward(builder.build(self.step, self.shape))
                torch.cuda.synchronize()
            except REFUSALS:
                torch.cuda.synchronize()  # raises where the device itself is lost
                return None
            captured, _ = capture_shape(
                forward, builder, self.shape, torch.cuda.graph_pool_handle()
            )
            builder.build(self.step, self.shape)  # capturing staged a step without rows
            times = [_replay(captured.graph) for _ in range(_WARM_UP + _REPLAYS)]
        return statistics.median(times[_WARM_UP:])


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def settle(
    task: Task, table: TileTable, dtype: str, measure: Measure
) -> tuple[Entry, float, float]:
    """The entry of ``task`` with which a step is the fastest; it stands in ``table`` then.

    Ops one after the other; those of experts that share rows with the other op, which stays.

    Returns:
        The entry, the step's time with it, and with the one that was in use; infinite where the
        device refuses that.
    """
    best = task.current
    _set(table, task, dtype, best)
    before = taken = measure() or float("inf")
    for op, entry in _entries(task):
        if isinstance(best, ExpertTiles):
            if entry.block_m != best.gate_up.block_m:
                continue
            entry = dataclasses.replace(best, **{op: entry})
        _set(table, task, dtype, entry)
        found = measure()
        if found is not None and found < taken * (1 - _CHANCE):
            best, taken = entry, found
    _set(table, task, dtype, best)
    return best, taken, before


def _entries(task: Task) -> Iterator[tuple[str, Any]]:
    """Candidates by op, without those in use."""
    in_use = set(by_op(task.current).items())
    return ((op, tiles) for op, tiles in task.order() if (op, tiles) not in in_use)


def _set(table: TileTable, task: Task, dtype: str, entry: Entry) -> None:
    """Let ``table`` have an entry for the task's tokens."""
    kind: dict[str, Any] = table.linear_tables
    if isinstance(task.shape, ExpertShape):
        kind = table.experts_tables
    key = task.shape.key(dtype)
    kind[key] = {**kind.get(key, {}), task.tokens: entry}


def main(arguments: list[str] | None = None) -> None:
    """Tune, print one table and write the file."""
    flags = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("python -m benchmarks.tune_steps needs a CUDA device, and there is none")
    deadline = Deadline(flags.seconds)
    rank = start_rank(
        flags.model,
        max_batch_size=max([*flags.tokens, *(-(-each // PROMPT) for each in flags.prefill)]),
        quantization=flags.weights or "auto",
        kv_cache_dtype="auto",
    )
    kernels = _context(rank)
    # Other tiles may leave more parts, and no graph of the rank's own is replayed any more.
    kernels.workspace.frozen = False
    table, name = kernels.tiles, NAMES.get(flags.weights)
    dtype = name or table.dtype
    limits = DeviceLimits(
        shared_bytes=table.shared_bytes,
        item_size=table.item_size,
        **LIMITS.get(flags.weights, {}),
    )
    config = rank.model_config
    parallel = resolve_parallel(
        tp=1, dp=1, ep=None, backend="auto", has_experts=config.moe is not None
    )
    experts, linears = expert_shape(config, parallel), linear_shapes(config, parallel)
    if name is not None:
        linears = [shape for shape in linears if shape.name not in ALWAYS_PLAIN]
    tasks = plan(experts, linears, table, limits, name)
    sizes = {*flags.tokens, *flags.prefill}
    asked = [task for task in tasks if task.tokens in sizes and _is_asked(task, flags.gemms)]
    timeout = deadline.left(_COMPILE_SHARE)
    compile_jobs(jobs(asked), rank.dtype, timeout, weights=flags.weights)
    chosen: dict[Task, Entry] = {}
    rows = []
    for tokens in sorted({task.tokens for task in asked}):
        context = None if tokens in flags.prefill else flags.context
        steps = CapturedSteps(rank, tokens, context)
        for task in asked:
            if task.tokens != tokens or not deadline.left():
                continue
            measure = functools.partial(steps.milliseconds, deadline)
            chosen[task], taken, before = settle(task, table, dtype, measure)
            rows += _rows(task, chosen[task], taken, before)
    where = shipped_file if flags.ship else user_file
    path = where(torch.cuda.get_device_name(), triton.__version__)
    write_tables(path, tables(tasks, chosen, dtype))
    title = f"Tiles in whole steps: {flags.model.name}, {rank.device_name}, {dtype}"
    report.show(title, rows, flags.json, seconds=deadline.spent, file=str(path))
    if not deadline.left():
        print(f"{flags.seconds:g} s are spent: what was not tried stays as it is", file=sys.stderr)


def _context(rank: LoadedRank) -> KernelContext:
    """That of the rank's kernels."""
    modules = rank.runner.forward.model.modules()
    found = (getattr(module, "context", None) for module in modules)
    return next(each for each in found if isinstance(each, KernelContext))


def _is_asked(task: Task, gemms: list[str] | None) -> bool:
    return gemms is None or getattr(task.shape, "name", "experts") in gemms


def _rows(task: Task, entry: Entry, taken: float, before: float) -> list[report.Row]:
    name = getattr(task.shape, "name", "experts")
    return [
        {
            "op": name if op == "linear" else f"{name} {op}",
            "tokens": task.tokens,
            "tiles": describe(tiles),
            "step µs": 1e3 * taken,
            "before µs": 1e3 * before,
        }
        for op, tiles in by_op(entry).items()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune_steps", description=__doc__)
    parser.add_argument("model", type=Path, help="a folder with config.json")
    parser.add_argument("--weights", choices=tuple(NAMES), help="default: of the model's type")
    parser.add_argument("--gemms", nargs="+", help="experts, qkv, o_proj, …; default: all")
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 8, 32, 64], help="of decodes")
    parser.add_argument("--context", type=int, default=1088, help="tokens of a decoding sequence")
    parser.add_argument("--prefill", type=int, nargs="*", default=[], help="tokens of prompts")
    parser.add_argument("--seconds", type=float, default=300, help="bound of the whole run")
    parser.add_argument("--ship", action="store_true", help="write the file the project ships")
    report.add_flags(parser)
    return parser


if __name__ == "__main__":
    main()
