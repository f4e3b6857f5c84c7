"""What the processes of a group tell their launcher: lines in a pipe, read when all have ended.

Owns the words on both sides. Knows nothing of how processes are started or watched.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Iterable
from typing import Any

REFUSED = 2
"""Exit status of what cannot start: bad flags or files, an address taken, too little memory."""

_MAX_REASON = 600  # characters of up to 6 bytes; lines up to 4096 bytes are not torn


class Reporter:
    """The writing end, shared by a group's processes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def rank(self, rank: int) -> None:
        """This process is a rank."""
        self._log_untuned(rank=rank)

    def ready(self) -> None:
        """This rank answers."""
        self._log_untuned(ready=time.monotonic())

    def leaves(self, reason: str) -> None:
        """This process ends itself."""
        self._log_untuned(reason=" ".join(reason.split())[:_MAX_REASON])

    def peers(self) -> None:
        """Another machine's ranks have ended."""
        self._log_untuned(peers=True)

    def ended(self, pid: int, code: int, status: int) -> None:
        """A child ended or was stopped; ``code`` and ``status`` as in ``os.waitid``."""
        self._log_untuned(ended=pid, code=code, status=status)

    def _log_untuned(self, **facts: Any) -> None:
        line = json.dumps({"pid": os.getpid(), **facts}, ensure_ascii=False) + "\n"
        os.write(self._descriptor, line.encode(errors="backslashreplace"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupEnd:
    """How a group ended.

    Attributes:
        cause: a line for people.
        code: what the launcher exits with if this is the end.
        left: a rank ended itself without a failure, since its frontend was gone.
        moved: the group of another machine ended, and this one with it.
        killed: by a signal from outside, or stopped by one.
        ready_at: time.monotonic() when all ranks were ready; None: they never were.
    """

    cause: str
    code: int
    left: bool = False
    moved: bool = False
    killed: bool = False
    ready_at: float | None = None


def read_end(text: str, num_ranks: int, leader: int, leader_status: int) -> GroupEnd:
    """What a group's reports come to.

    Args:
        num_ranks: of this machine.
        leader: process id of the group's first process, and its wait status.
    """
    facts = [json.loads(line) for line in text.splitlines()]
    ready = [each["ready"] for each in facts if "ready" in each]
    common: dict[str, Any] = {"ready_at": max(ready) if len(ready) == num_ranks else None}
    first = next((each for each in facts if "ended" in each or "peers" in each), None)
    if first is not None and "peers" in first:
        return GroupEnd(cause="another machine's ranks ended", code=1, moved=True, **common)
    if first is None:  # the group's own process ended by itself
        reason = _reason(facts, leader)
        code = os.waitstatus_to_exitcode(leader_status)
        killed = code < 0 and reason is None
        cause = reason or f"the ranks' parent (pid {leader}) {_how(code)}"
        return GroupEnd(cause=cause, code=_exit_code(code), killed=killed, **common)
    return _end_of_rank(first, facts, common)


def _end_of_rank(
    end: dict[str, Any], facts: Iterable[dict[str, Any]], common: dict[str, Any]
) -> GroupEnd:
    pid, status = end["ended"], end["status"]
    rank = next((each["rank"] for each in facts if "rank" in each and each["pid"] == pid), None)
    name = f"rank {rank} (pid {pid})" if rank is not None else f"a rank (pid {pid})"
    if end["code"] == os.CLD_EXITED:
        reason = _reason(facts, pid)
        cause = reason or f"{name} exited with {status}"
        return GroupEnd(cause=cause, code=status, left=status == 0, **common)
    verb = "was stopped by" if end["code"] == os.CLD_STOPPED else "was killed by"
    cause = f"{name} {verb} {_signal_name(status)}"
    return GroupEnd(cause=cause, code=128 + status, killed=True, **common)


def _reason(facts: Iterable[dict[str, Any]], pid: int) -> str | None:
    return next((each["reason"] for each in facts if "reason" in each and each["pid"] == pid), None)


def _how(code: int) -> str:
    return f"exited with {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"


def _exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
