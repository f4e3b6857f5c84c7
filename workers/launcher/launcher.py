"""The loop that keeps a group of ranks alive: start, wait, clean up, start again.

Owns when and how often. Each group is a fork of this process, which has imported what ranks need
and never runs any of it. Knows nothing of what a group does.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import sys
import time
from collections.abc import Callable

from switchyard.worker.backoff import MAX_FAILED_STARTS, Backoff
from switchyard.worker.prctl import adopt_orphans, continue_stopped, die_with, name_process
from workers.launcher.epochs import Epochs
from workers.launcher.processes import kill_session
from workers.launcher.reports import GroupEnd, Reporter, read_end

_PEERS_DELAY = 0.2
_STOPS = {signal.SIGTERM, signal.SIGINT}
_SIGNALS = _STOPS | {signal.SIGCHLD}

RunGroup = Callable[[Reporter, Epochs], None]
"""Runs one group; does not return."""


@dataclasses.dataclass(slots=True)
class Restarts:
    """When the next group starts, from how the ones before it ended."""

    backoff: Backoff = dataclasses.field(default_factory=Backoff)
    was_ready: bool = False

    def after(self, end: GroupEnd, now: float) -> float | None:
        """Returns the seconds to wait; None: give up."""
        if end.ready_at is not None or end.left:
            self.was_ready = True
            self.backoff.was_ready()
        if end.moved:
            return _PEERS_DELAY
        if end.left:
            return 0.0
        if end.ready_at is None and not self.was_ready and not end.killed:
            return None  # the first start was refused
        return self.backoff.after_loss(None if end.ready_at is None else now - end.ready_at)


class Launcher:
    """Runs groups one after the other until SIGTERM or SIGINT, or until they fail to start.

    Args:
        run_group: what a group's process does.
        num_ranks: of a group, on this machine.
    """

    def __init__(self, run_group: RunGroup, num_ranks: int) -> None:
        self._run_group = run_group
        self._num_ranks = num_ranks
        self._epochs = Epochs(num_ranks)

    def run(self) -> int:
        """Returns the exit status: 0 after a signal to end, else that of the last failed start."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        adopt_orphans()
        gc.collect()
        gc.freeze()  # pages that ranks share stay shared
        gc.enable()
        restarts = Restarts()
        while True:
            end = self._one_group()
            if end is None:
                return 0
            delay = restarts.after(end, time.monotonic())
            if delay is None:
                _log_untuned(_last_words(end, restarts.backoff.failed_starts))
                return end.code or 1
            wait = f" in {delay:g} s" if delay else ""
            _log_untuned(f"{end.cause}; starting the group again{wait}")
            if delay and _stopped_within(delay):
                return 0

    def _one_group(self) -> GroupEnd | None:
        """Start a group and wait for its end; None when a signal to stop comes first."""
        reading, writing = os.pipe()
        launcher = os.getpid()
        leader = os.fork()
        if leader == 0:
            os.close(reading)
            self._lead(launcher, Reporter(writing))
        os.close(writing)
        stopped = _wait_for(leader)
        status = kill_session(leader)
        with open(reading, encoding="utf-8") as reports:
            end = read_end(reports.read(), self._num_ranks, leader, status)
        return None if stopped else end

    def _lead(self, launcher: int, reporter: Reporter) -> None:
        """The forked process's life."""
        try:
            os.setsid()
            die_with(launcher)
            name_process("group")
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._run_group(reporter, self._epochs)
        finally:
            os._exit(1)


def _wait_for(leader: int) -> bool:
    """Wait until the child has ended, or a signal asks for the end: true.

    One that is stopped would not see a rank end; it is continued.
    """
    while os.waitid(os.P_PID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if (stop := continue_stopped(leader)) is not None:
            _log_untuned(f"the ranks' parent was stopped by {stop.name}; continuing it")
        if signal.sigwait(_SIGNALS) in _STOPS:
            return True
    return signal.sigtimedwait(_STOPS, 0) is not None


def _stopped_within(seconds: float) -> bool:
    """Sleep; true as soon as a signal asks for the end."""
    return signal.sigtimedwait(_STOPS, seconds) is not None


def _last_words(end: GroupEnd, failed_starts: int) -> str:
    if failed_starts < MAX_FAILED_STARTS:
        return end.cause
    return f"{end.cause}; {failed_starts} starts in a row failed"


def _log_untuned(line: str) -> None:
    sys.stderr.write(f"switchyard workers: {line}\n")
    sys.stderr.flush()
