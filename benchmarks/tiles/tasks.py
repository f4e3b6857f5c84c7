"""What a tune has to do, in which order, until when, and what it writes.

Owns `Task` (one GEMM or pair of GEMMs at one number of tokens), the time bound, the choice among
measured tiles and the tables for the file. Imports no torch; measures nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.gemm_shapes import ExpertShape, LinearShape
from benchmarks.tiles.candidates import (
    DeviceLimits,
    expert_candidates,
    linear_candidates,
)
from moe.base.tiles import FP8_NAME, INT4_NAME, ExpertTiles, Tiles, TileTable

EXPERT_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192)
LINEAR_TOKENS = (1, 8, 16, 32, 64, 128, 256, 1024)
# Of weights of fewer bits, which have no library's GEMM, both are measured at all of these.
MANY_TOKENS = (512, 1024, 2048, 4096, 8192, 16384)
_LIBRARY_FROM = 8192  # tokens of a dense GEMM that are left to the library unmeasured

Entry = ExpertTiles | Tiles | None  # of a file; None is the library's GEMM


class Deadline:
    """A time bound; a first part of the work may have a share of it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start, self._seconds = clock, clock(), seconds

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def left(self, share: float = 1.0) -> float:
        """Seconds until that share of the time is spent, at least 0."""
        return max(0.0, share * self._seconds - self.spent)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One kernel to compile: `many`, that for activations of eight bits if the tiles have one."""

    op: str
    shape: ExpertShape | LinearShape
    tiles: Tiles
    many: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """The tiles to time for a shape at one number of tokens.

    Attributes:
        guess: what is used where nobody measured; current: what is used now.
        candidates: by op; the guess and the current ones first.
        many: weights and, where kernels take them, activations have eight bits.
    """

    shape: ExpertShape | LinearShape
    tokens: int
    guess: Entry
    current: Entry
    candidates: dict[str, list[Tiles | None]]
    many: bool = False

    def job(self, op: str, tiles: Tiles) -> Job:
        """What is to be compiled for it."""
        return Job(op=op, shape=self.shape, tiles=tiles, many=self.many)

    def known(self) -> list[Entry]:
        """What is in use."""
        return list(dict.fromkeys((self.guess, self.current)))

    def of_known(self) -> Task:
        """The same with no candidates but what is in use."""
        return dataclasses.replace(self, candidates={})

    def order(self) -> list[tuple[str, Tiles | None]]:
        """Ops and tiles: of each op first those in use, so that any part of it is of use."""
        known = [op for entry in self.known() for op in by_op(entry).items()]
        rest = [(op, tiles) for op, several in self.candidates.items() for tiles in several]
        return list(dict.fromkeys(known + rest))


def by_op(entry: Entry) -> dict[str, Tiles | None]:
    """The tiles of each GEMM of an entry."""
    if isinstance(entry, ExpertTiles):
        return {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    return {"linear": entry}


def plan(
    experts: ExpertShape | None,
    linears: Iterable[LinearShape],
    book: TileTable,
    limits: DeviceLimits,
    weights: str | None = None,
) -> list[Task]:
    """All tasks, those of few tokens first: `book` has what is used now; `weights` names their type
    where it is not the model's."""
    bare = TileTable(dtype=book.dtype, item_size=book.item_size, shared_bytes=book.shared_bytes)
    tasks = []
    shapes = list(linears)
    more = set() if weights is None else {*MANY_TOKENS}
    for tokens in sorted({*EXPERT_TOKENS, *LINEAR_TOKENS, *more}):
        if experts is not None and tokens in {*EXPERT_TOKENS, *more}:
            tasks.append(_expert_task(experts, tokens, bare, book, limits, weights))
        if tokens in {*LINEAR_TOKENS, *more}:
            tasks += [_linear_task(shape, tokens, bare, book, limits, weights) for shape in shapes]
    return tasks


def jobs(tasks: Iterable[Task]) -> list[Job]:
    """Kernels of all tasks, each once, in the order in which they are needed."""
    return list(
        dict.fromkeys(
            task.job(op, tiles) for task in tasks for op, tiles in task.order() if tiles is not None
        )
    )


def choose(times: dict[Any, float], is_right: Callable[[Any], bool]) -> Any:
    """The fastest of `times` whose result is right; wrong ones before it are taken out.

    Raises LookupError when none is right.
    """
    while times:
        best = min(times, key=times.__getitem__)
        if is_right(best):
            return best
        del times[best]
    raise LookupError("none of the tiles that were timed gave the right result")


def tables(tasks: Iterable[Task], chosen: Mapping[Task, Entry], dtype: str) -> dict[str, Any]:
    """Entries as `moe.base.tile_files.write_tables` takes them, for weights of `dtype`. Numbers of
    tokens that were not reached keep what is used now; a shape of which nothing was reached is left
    out."""
    found: dict[str, Any] = {"experts": {}, "linear": {}}
    tasks = list(tasks)
    reached = {task.shape for task in chosen}
    for task in tasks:
        if task.shape not in reached:
            continue
        kind = "experts" if isinstance(task.shape, ExpertShape) else "linear"
        start = {} if kind == "experts" or dtype in (FP8_NAME, INT4_NAME) else {_LIBRARY_FROM: None}
        table = found[kind].setdefault(task.shape.key(dtype), start)
        table[task.tokens] = chosen.get(task, task.current)
    return found


def _expert_task(
    shape: ExpertShape,
    tokens: int,
    bare: TileTable,
    book: TileTable,
    limits: DeviceLimits,
    weights: str | None,
) -> Task:
    routes = tokens * shape.top_k
    guess, current = (
        which.experts(shape.num_local, shape.width, shape.hidden, tokens, routes, weights=weights)
        for which in (bare, book)
    )
    entries = [entry for table in book.experts_tables.values() for entry in table.values()]
    candidates: dict[str, list[Tiles | None]] = {}
    for op in by_op(guess):
        known = dict.fromkeys(getattr(entry, op) for entry in (guess, current))
        winners = [getattr(entry, op) for entry in entries]
        candidates[op] = [*expert_candidates(op, shape, tokens, known, limits, winners)]
    return Task(
        shape=shape,
        tokens=tokens,
        guess=guess,
        current=current,
        candidates=candidates,
        many=limits.many(tokens),
    )


def _linear_task(
    shape: LinearShape,
    tokens: int,
    bare: TileTable,
    book: TileTable,
    limits: DeviceLimits,
    weights: str | None,
) -> Task:
    guess, current = (
        which.linear(shape.outputs, shape.inputs, tokens, weights=weights) for which in (bare, book)
    )
    known = dict.fromkeys((guess, current))
    return Task(
        shape=shape,
        tokens=tokens,
        guess=guess,
        current=current,
        candidates={"linear": linear_candidates(shape, tokens, known, limits)},
        many=limits.many(tokens),
    )
