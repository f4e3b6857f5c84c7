"""Measures which tiles the GEMMs of a model want on this GPU, and keeps them.

``python -m benchmarks.tune MODEL [--tp N] [--dp N] [--ep N] [--moe-ep-backend B] [--dtype D]
[--weights fp8|int4] [--gemms experts qkv] [--tokens 1 64] [--known] [--seconds 300] [--ship]``

For each GEMM of a rank and a few numbers of tokens: kernels of all candidates are compiled in
processes side by side, then timed in CUDA graphs over several copies of made-up weights, so that
the L2 cache is no help, with routes drawn at random. The fastest whose result is right is kept. The
two expert GEMMs share the rows of tiles: their best pairs are timed together, with the sorting of
routes. Dense GEMMs pay for the parts that the next kernel must read, and the library's GEMM is one
of the candidates, but for weights of fewer bits. When the time is spent, what was not reached stays
as it is. Servers on this machine read the result at their next start; with --ship it goes to the
files the project ships.

With --weights fp8: weights of eight bits under scales of blocks of 128 × 128, whose entries stand
beside the others'; router and head have none. Many tokens are then of eight bits too, made before
the first launch, as the norm makes them. With --weights int4: of four bits in groups of 128 inputs,
whose entries stand for other groups too. --gemms and --tokens name a part of the work. With --known
only what is in use is timed, and nothing is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks import report
from benchmarks.gemm_shapes import ExpertShape, LinearShape, expert_shape, linear_shapes
from benchmarks.tiles.candidates import DeviceLimits, describe, shortlist
from benchmarks.tiles.compile import compile_jobs
from benchmarks.tiles.problems import ExpertProblem, LinearProblem, made_format, make_weights
from benchmarks.tiles.tasks import Deadline, Entry, Job, Task, by_op, choose, jobs, plan, tables
from benchmarks.tiles.timing import REFUSALS, Call, num_copies, time_us
from moe.base.context import KernelContext, make_context
from moe.base.parallel import resolve_parallel
from moe.base.tile_files import shipped_file, user_file, write_tables
from moe.base.tiles import FP8_NAME, INT4_NAME, ExpertTiles
from moe.base.weight import Weight
from moe.config import check_widths
from workers.config_json.model_config import ModelConfig
from workers.step.roofline import Device, device_ceilings

Shape = ExpertShape | LinearShape

_COMPILE_SHARE = 0.6  # of the time
NAMES = {"fp8": FP8_NAME, "int4": INT4_NAME}
LIMITS: dict[str, dict[str, Any]] = {"fp8": {"block": (128, 128)}, "int4": {"group": 128}}
_VALUE_BYTES = {"fp8": 1.0, "int4": 0.5}
ALWAYS_PLAIN = ("router", "head")


class Tuning:
    """One run: the device, what was measured, chosen and left out."""

    def __init__(
        self,
        context: KernelContext,
        dtype: torch.dtype,
        deadline: Deadline,
        *,
        weights: str | None = None,
    ) -> None:
        self.context, self.dtype, self.deadline = context, dtype, deadline
        self.kind = weights
        self.torch_device = context.workspace.device
        self.device: Device | None = device_ceilings(torch.cuda.get_device_name())
        self.weights: dict[Shape, tuple[Weight, ...]] = {}
        self.chosen: dict[Task, Entry] = {}
        self.rows: list[report.Row] = []
        self.counts = dict.fromkeys(("timed", "refused", "wrong"), 0)

    def run(self, tasks: list[Task]) -> None:
        """Compile, then time and choose task by task, until the time is spent."""
        timeout = self.deadline.left(_COMPILE_SHARE)
        ready, refused = compile_jobs(jobs(tasks), self.dtype, timeout, weights=self.kind)
        self.counts["refused"] += len(refused)
        with report.progress() as bar:
            progress = bar.add_task("measure", total=len(tasks))
            for task in tasks:
                if self.deadline.left():
                    self._settle(task, ready)
                bar.advance(progress)

    def _settle(self, task: Task, ready: set[Job]) -> None:
        problem = self._problem(task)
        floors = {op: problem.floor_us(op, self.device) for op in problem.ops}
        times: dict[str, dict[Any, float]] = {op: {} for op in problem.ops}
        known = {item for entry in task.known() for item in by_op(entry).items()}
        for op, tiles in task.order():
            compiled = tiles is None or task.job(op, tiles) in ready
            if compiled or (op, tiles) in known:
                self._time(times[op], tiles, partial(problem.calls, op, tiles), floors[op])
        if isinstance(problem, ExpertProblem):
            whole = self._time_pairs(task, problem, times, sum(floors.values()))
        else:
            whole = {
                tiles: taken + problem.charge_us(tiles, self.device)
                for tiles, taken in times["linear"].items()
            }
        guess_us, timed = whole.get(task.guess), len(whole)
        try:
            chosen = choose(
                whole,
                lambda entry: all(problem.is_right(*item) for item in by_op(entry).items()),
            )
        except LookupError:
            self.counts["wrong"] += timed
            return
        self.counts["wrong"] += timed - len(whole)
        self.chosen[task] = chosen
        self.rows += self._rows(task, floors, times, whole[chosen], guess_us)

    def _time_pairs(
        self,
        task: Task,
        problem: ExpertProblem,
        times: dict[str, dict[Any, float]],
        floor: float,
    ) -> dict[Any, float]:
        """The experts' launches together, which overlap: of the best pairs."""
        sizes = {tiles.block_m for tiles in times["gate_up"]} - {1}
        align = {block_m: time_us(problem.align_calls(block_m), 0.0) for block_m in sizes}
        pairs = [*task.known(), *shortlist(align, times["gate_up"], times["down"])]
        whole: dict[Any, float] = {}
        for pair in dict.fromkeys(pairs):
            assert isinstance(pair, ExpertTiles)
            self._time(whole, pair, partial(problem.entry_calls, pair), floor)
        return whole

    def _time(
        self, times: dict[Any, float], key: Entry, calls: Callable[[], list[Call]], floor: float
    ) -> None:
        """Add one measurement, unless the time is spent or the device refuses."""
        if not self.deadline.left():
            return
        try:
            times[key] = time_us(calls(), floor)
        except REFUSALS:
            torch.cuda.synchronize()  # raises where the device itself is lost
            self.counts["refused"] += 1
        else:
            self.counts["timed"] += 1

    def _problem(self, task: Task) -> ExpertProblem | LinearProblem:
        shape = task.shape
        if shape not in self.weights:
            self.weights[shape] = self._make(shape)
        if isinstance(shape, ExpertShape):
            w13, w2 = self.weights[shape]
            return ExpertProblem(shape, task.tokens, w13, w2, self.context)
        return LinearProblem(shape, task.tokens, self.weights[shape][0], self.context)

    def _make(self, shape: Shape) -> tuple[Weight, ...]:
        """As many copies as the L2 cache cannot hold of what one token reads."""
        if isinstance(shape, ExpertShape):
            E, width, hidden = shape.num_local, shape.width, shape.hidden
            sizes: tuple[tuple[int, ...], ...] = ((E, 2 * width, hidden), (E, hidden, width))
            read = shape.top_k / shape.num_experts / 3  # by the smaller of the two
        else:
            sizes, read = ((shape.outputs, shape.inputs),), 1.0
        numbers = sum(torch.Size(size).numel() for size in sizes)
        whole = int(numbers * _VALUE_BYTES.get(self.kind or "", self.dtype.itemsize))
        l2 = torch.cuda.get_device_properties(self.torch_device).L2_cache_size
        copies = num_copies(read * whole, whole, l2, torch.cuda.mem_get_info()[0])
        made = made_format(shape, self.kind)
        return tuple(
            make_weights(size, copies, self.dtype, self.torch_device, made) for size in sizes
        )

    def _rows(
        self,
        task: Task,
        floors: dict[str, float],
        times: dict[str, dict[Any, float]],
        whole_us: float,
        guess_us: float | None,
    ) -> list[report.Row]:
        """Of experts each GEMM by itself and both together, with the sorting of routes."""
        entry, rows = self.chosen[task], []
        if isinstance(entry, ExpertTiles):
            for op, tiles in by_op(entry).items():
                guess = times[op].get(by_op(task.guess)[op])
                rows.append((f"experts {op}", describe(tiles), times[op][tiles], floors[op], guess))
            rows.append(("experts", "", whole_us, sum(floors.values()), guess_us))
        else:
            name = getattr(task.shape, "name", "linear")
            rows.append((name, describe(entry), whole_us, floors["linear"], guess_us))
        return [
            {
                "op": op,
                "tokens": task.tokens,
                "tiles": tiles,
                "µs": taken,
                "floor µs": floor or None,
                "share %": 100 * floor / taken if floor else None,
                "guess µs": guess,
            }
            for op, tiles, taken, floor, guess in rows
        ]


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
    book, name = context.tiles, NAMES.get(flags.weights)
    limits = DeviceLimits(
        shared_bytes=book.shared_bytes,
        item_size=book.item_size,
        **LIMITS.get(flags.weights, {}),
    )
    experts, linears = expert_shape(config, parallel), linear_shapes(config, parallel)
    if name is not None:
        linears = [shape for shape in linears if shape.name not in ALWAYS_PLAIN]
    tasks = plan(experts, linears, book, limits, name)
    asked = [task for task in tasks if _is_asked(task, flags)]
    if flags.known:
        asked = [task.of_known() for task in asked]
    tuning = Tuning(context, dtype, Deadline(flags.seconds), weights=flags.weights)
    tuning.run(asked)
    path = None
    if not flags.known:
        where = shipped_file if flags.ship else user_file
        path = where(torch.cuda.get_device_name(), triton.__version__)
        write_tables(path, tables(tasks, tuning.chosen, name or book.dtype))
    _report(flags, tuning, len(asked), path)


def _is_asked(task: Task, flags: argparse.Namespace) -> bool:
    """Whether --gemms and --tokens, where they are given, have it."""
    gemm = getattr(task.shape, "name", "experts")
    return (flags.gemms is None or gemm in flags.gemms) and (
        flags.tokens is None or task.tokens in flags.tokens
    )


def _report(flags: argparse.Namespace, tuning: Tuning, num_tasks: int, path: Path | None) -> None:
    layout, kind = f"TP={flags.tp} DP={flags.dp}", flags.weights or flags.dtype
    title = f"Tiles: {flags.model.name}, {layout}, {torch.cuda.get_device_name()}, {kind}"
    seconds, file = tuning.deadline.spent, "none" if path is None else str(path)
    report.show(title, tuning.rows, flags.json, seconds=seconds, **tuning.counts, file=file)
    if len(tuning.chosen) < num_tasks:
        print(
            f"{num_tasks - len(tuning.chosen)} of {num_tasks} GEMMs were not reached in "
            f"{flags.seconds:g} s and stay as they are: give more --seconds"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("model", type=Path, help="a folder with config.json")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--dp", type=int, default=1)
    parser.add_argument("--ep", type=int, help="default: all ranks, as `switchyard serve`")
    parser.add_argument("--moe-ep-backend", default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--weights", choices=tuple(NAMES), help="default: of the model's type")
    parser.add_argument("--gemms", nargs="+", help="experts, qkv, o_proj, …; default: all")
    parser.add_argument("--tokens", type=int, nargs="+", help="default: all")
    parser.add_argument("--known", action="store_true", help="time what is in use, write nothing")
    parser.add_argument("--seconds", type=float, default=300, help="bound of the whole run")
    parser.add_argument("--ship", action="store_true", help="write the file the project ships")
    report.add_flags(parser)
    return parser


if __name__ == "__main__":
    main()
