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
from benchmarks.tile_candidates import (
    Limits,
    choose_pair,
    expert_candidates,
    linear_candidates,
)
from moe.kernels.tiles import ExpertTiles, TileBook, Tiles

EXPERT_TOKENS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192)
LINEAR_TOKENS = (1, 8, 16, 32, 64, 128, 256, 1024)
_LIBRARY_FROM = 8192  # tokens of a dense GEMM that are left to the library unmeasured

Chosen = dict[str, Tiles | None]  # by op
Times = dict[str, dict[Tiles | None, float]]  # microseconds, by op and tiles


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
    """One kernel to compile."""

    op: str
    shape: ExpertShape | LinearShape
    tiles: Tiles


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """The tiles to time for a shape at one number of tokens.

    Attributes:
        guess: what is used where nobody measured; current: what is used now.
        candidates: by op; the guess and the current ones first.
    """

    shape: ExpertShape | LinearShape
    tokens: int
    guess: Chosen
    current: Chosen
    candidates: dict[str, list[Tiles | None]]

    def order(self) -> list[tuple[str, Tiles | None]]:
        """Ops and tiles: of each op first those in use, so that any part of it is of use."""
        known = [
            (op, tiles)
            for op in self.candidates
            for tiles in dict.fromkeys((self.guess[op], self.current[op]))
        ]
        rest = [(op, tiles) for op, several in self.candidates.items() for tiles in several]
        return list(dict.fromkeys(known + rest))

    def is_known(self, op: str, tiles: Tiles | None) -> bool:
        """Whether these are in use, measured or guessed."""
        return tiles is None or tiles in (self.guess[op], self.current[op])


def plan(
    experts: ExpertShape | None, linears: Iterable[LinearShape], book: TileBook, limits: Limits
) -> list[Task]:
    """All tasks, those of few tokens first: `book` has what is used now."""
    bare = TileBook(dtype=book.dtype, item_size=book.item_size, shared_bytes=book.shared_bytes)
    tasks = []
    shapes = list(linears)
    for tokens in sorted({*EXPERT_TOKENS, *LINEAR_TOKENS}):
        if experts is not None and tokens in EXPERT_TOKENS:
            tasks.append(_expert_task(experts, tokens, bare, book, limits))
        if tokens in LINEAR_TOKENS:
            tasks += [_linear_task(shape, tokens, bare, book, limits) for shape in shapes]
    return tasks


def jobs(tasks: Iterable[Task]) -> list[Job]:
    """Kernels of all tasks, each once, in the order in which they are needed."""
    return list(
        dict.fromkeys(
            Job(op=op, shape=task.shape, tiles=tiles)
            for task in tasks
            for op, tiles in task.order()
            if tiles is not None
        )
    )


def choose(
    times: Times, align: Mapping[int, float], is_right: Callable[[str, Tiles | None], bool]
) -> Chosen | None:
    """The fastest tiles whose results are right; wrong ones are taken out of `times`.

    Args:
        align: microseconds of sorting routes, by block_m, which expert GEMMs pay once.
    """
    while True:
        best = _fastest(times, align)
        if best is None:
            return None
        wrong = [op for op, tiles in best.items() if not is_right(op, tiles)]
        if not wrong:
            return best
        for op in wrong:
            del times[op][best[op]]


def tables(tasks: Iterable[Task], chosen: Mapping[Task, Chosen], dtype: str) -> dict[str, Any]:
    """Entries as `moe.kernels.tiles.write_tables` takes them. Numbers of tokens that were not
    reached keep what is used now; a shape of which nothing was reached is left out."""
    found: dict[str, Any] = {"experts": {}, "linear": {}}
    tasks = list(tasks)
    reached = {task.shape for task in chosen}
    for task in tasks:
        if task.shape not in reached:
            continue
        entry = chosen.get(task, task.current)
        if isinstance(task.shape, ExpertShape):
            table = found["experts"].setdefault(task.shape.key(dtype), {})
            table[task.tokens] = ExpertTiles(**entry)  # type: ignore[arg-type]
        else:
            table = found["linear"].setdefault(task.shape.key(dtype), {_LIBRARY_FROM: None})
            table[task.tokens] = entry["linear"]
    return found


def _expert_task(
    shape: ExpertShape, tokens: int, bare: TileBook, book: TileBook, limits: Limits
) -> Task:
    routes = tokens * shape.top_k
    guess, current = (
        _by_op(which.experts(shape.num_local, shape.width, shape.hidden, tokens, routes))
        for which in (bare, book)
    )
    entries = [entry for table in book.experts_tables.values() for entry in table.values()]
    candidates = {
        op: expert_candidates(
            op,
            shape,
            tokens,
            dict.fromkeys((guess[op], current[op])),
            limits,
            [getattr(entry, op) for entry in entries],
        )
        for op in guess
    }
    return Task(shape=shape, tokens=tokens, guess=guess, current=current, candidates=candidates)


def _linear_task(
    shape: LinearShape, tokens: int, bare: TileBook, book: TileBook, limits: Limits
) -> Task:
    guess, current = (
        {"linear": which.linear(shape.outputs, shape.inputs, tokens)} for which in (bare, book)
    )
    known = dict.fromkeys((guess["linear"], current["linear"]))
    candidates = {"linear": linear_candidates(shape, tokens, known, limits)}
    return Task(shape=shape, tokens=tokens, guess=guess, current=current, candidates=candidates)


def _by_op(entry: ExpertTiles) -> Chosen:
    return {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}


def _fastest(times: Times, align: Mapping[int, float]) -> Chosen | None:
    if set(times) == {"linear"}:
        linear = times["linear"]
        return {"linear": min(linear, key=linear.__getitem__)} if linear else None
    pair = choose_pair(align, times["gate_up"], times["down"])
    return None if pair is None else _by_op(pair)
