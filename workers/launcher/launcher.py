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

from workers.launcher.linux import adopt_orphans, die_with, kill_session, name_process
from workers.launcher.reports import GroupEnd, Reporter, read_end

_FIRST_DELAY = 0.2
_LONGEST_DELAY = 30.0
_STABLE_SECONDS = 10.0  # ready for so long, a group is no part of a row of losses
_MAX_FAILED_STARTS = 5
_PEERS_DELAY = 0.2
_STOPS = {signal.SIGTERM, signal.SIGINT}
_SIGNALS = _STOPS | {signal.SIGCHLD}

RunGroup = Callable[[Reporter, int], None]
"""Runs one group, given the newest epoch that any before it has seen; does not return."""


@dataclasses.dataclass(slots=True)
class Backoff:
    """When the next group starts, from how the ones before it ended."""

    losses: int = 0
    failed_starts: int = 0
    was_ready: bool = False

    def after(self, end: GroupEnd, now: float) -> float | None:
        """Seconds to wait; None: give up."""
        if end.ready_at is not None or end.left:
            self.was_ready = True
            self.failed_starts = 0
        if end.moved:
            return _PEERS_DELAY
        if end.left:
            return 0.0
        if end.ready_at is None:
            self.failed_starts += 1
            first_start_refused = not self.was_ready and not end.killed
            if first_start_refused or self.failed_starts >= _MAX_FAILED_STARTS:
                return None
        elif now - end.ready_at >= _STABLE_SECONDS:
            self.losses = 0
        self.losses += 1
        if self.losses == 1:
            return 0.0
        return min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** (self.losses - 2))


class Launcher:
    """Runs groups one after the other until SIGTERM or SIGINT, or until they fail to start.

    Args:
        run_group: what a group's process does.
        num_ranks: of a group, on this machine.
    """

    def __init__(self, run_group: RunGroup, num_ranks: int) -> None:
        self._run_group = run_group
        self._num_ranks = num_ranks
        self._epoch = 0

    def run(self) -> int:
        """Returns the exit status: 0 when told to end, else that of the last failed start."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        adopt_orphans()
        gc.collect()
        gc.freeze()  # pages that ranks share stay shared
        backoff = Backoff()
        while True:
            end = self._one_group()
            if end is None:
                return 0
            delay = backoff.after(end, time.monotonic())
            if delay is None:
                _say(_last_words(end, backoff.failed_starts))
                return end.code or 1
            wait = f" in {delay:g} s" if delay else ""
            _say(f"{end.cause}; starting the group again{wait}")
            if delay and _told_to_stop(delay):
                return 0

    def _one_group(self) -> GroupEnd | None:
        """Start a group and wait for its end; None when told to stop before that."""
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
        self._epoch = max(self._epoch, end.epoch)
        return None if stopped else end

    def _lead(self, launcher: int, reporter: Reporter) -> None:
        """The forked process's life."""
        try:
            os.setsid()
            die_with(launcher)
            name_process("group")
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._run_group(reporter, self._epoch)
        finally:
            os._exit(1)


def _wait_for(leader: int) -> bool:
    """Wait until the child has ended, or a signal asks for the end: true."""
    while os.waitid(os.P_PID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if signal.sigwait(_SIGNALS) in _STOPS:
            return True
    return signal.sigtimedwait(_STOPS, 0) is not None


def _told_to_stop(seconds: float) -> bool:
    """Sleep; true as soon as a signal asks for the end."""
    return signal.sigtimedwait(_STOPS, seconds) is not None


def _last_words(end: GroupEnd, failed_starts: int) -> str:
    if failed_starts < _MAX_FAILED_STARTS:
        return end.cause
    return f"{end.cause}; {failed_starts} starts in a row failed"


def _say(line: str) -> None:
    sys.stderr.write(f"switchyard workers: {line}\n")
    sys.stderr.flush()
