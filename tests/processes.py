"""Processes that tests start: their environment, who descends from whom, and what they hold."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests.waiting import HANG_SECONDS, wait_until

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "GRPC_VERBOSITY": "NONE"}


def forks() -> ForkServerContext:
    """Starts ranks of tests as forks of one process, which has imported for all what takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.moe.ranks", "workers.self_check.collectives"])
    return context


def command(pid: int) -> bytes:
    """A process' command line; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def name(pid: int) -> str:
    """What a process calls itself; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def open_files(pid: int) -> Iterator[str]:
    """What a process' descriptors are of."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                yield os.readlink(f"/proc/{pid}/fd/{number}")


def descendants(pid: int, depth: int = 10) -> list[int]:
    """Processes below one that run, nearest first."""
    found: list[int] = []
    layer = [pid]
    for _ in range(depth):
        layer = [child for parent in layer for child in _children(parent)]
        found += layer
    return list(filter(is_alive, found))


def ranks_below(pid: int) -> dict[int, int]:
    """Processes of the ranks that descend from one, by rank."""
    names = {name(each): each for each in descendants(pid)}
    prefix = "rank "
    return {
        int(each.removeprefix(prefix)): rank
        for each, rank in names.items()
        if each.startswith(prefix)
    }


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/{pid}/task/{task}/children").read_text()
                children += [int(word) for word in text.split()]
    return children


def _stat(pid: int) -> list[str]:
    """Fields as in proc(5), from the state on; that of a process that is gone is X."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "0"]


def is_alive(pid: int) -> bool:
    """Whether a process runs, a zombie not counted."""
    return _stat(pid)[0] not in "ZX"


def is_stopped(pid: int) -> bool:
    return _stat(pid)[0] == "T"


def parent(pid: int) -> int:
    """The process that it descends from; 0 once it is gone."""
    return int(_stat(pid)[1])


def wait_until_gone(pids: list[int], seconds: float = HANG_SECONDS) -> None:
    """Return once none of the processes runs."""
    try:
        wait_until(lambda: not any(map(is_alive, pids)), seconds)
    except AssertionError:
        left = [(pid, command(pid)) for pid in pids if is_alive(pid)]
        raise AssertionError(f"{left} still run after {seconds} s") from None


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
