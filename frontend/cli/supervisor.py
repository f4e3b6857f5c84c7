"""The two processes of `switchyard serve`, which start again when one is killed and end together.

Owns the child processes, when each starts again, and the signals between them. Knows neither what
they do nor their flags.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from switchyard.worker.backoff import MAX_FAILED_STARTS, Backoff
from switchyard.worker.prctl import continue_stopped, die_with

KILL_AFTER_SECONDS = 10.0
"""Between SIGTERM and SIGKILL for a child whose sibling is gone."""

LAST_WORDS_SECONDS = 5.0
"""What a frontend whose workers ended for good gets to answer its clients, before SIGTERM."""

GONE_SECONDS = 10.0
"""How long a killed child's descendants are waited for before it starts again."""

_POLL_SECONDS = 0.05
_LONG_SECONDS = 3600.0  # sigtimedwait knows no infinity
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


def supervise(*, frontend: Callable[[int], Sequence[str]], workers: Sequence[str]) -> int:
    """Run two commands until one of them ends by itself, then end the other.

    A child that is killed is started again, at once or with a growing delay, unless it was killed
    before it was ready too often in a row. One that is stopped is continued. SIGTERM and SIGINT go
    to the frontend, which drains and ends; the workers go after it. Both die with this process,
    also when it is killed.

    Args:
        frontend: the frontend's command, given the descriptor of its socket to the supervisor.
        workers: the launcher's command.

    Returns:
        The exit code of the child that ended first, 128 + the signal for one that was killed.
    """
    with _blocked_signals():
        supervisor = Supervisor(frontend, workers)
        try:
            return supervisor.run()
        finally:
            supervisor.end()


class Child:
    """A process that may be started again.

    Attributes:
        name: of the child, for people.
        process: the present one, or the last; None before the first.
        starts_at: time.monotonic() of the next start; None while the process runs.
    """

    def __init__(self, name: str, *, dies_by: signal.Signals) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self.starts_at: float | None = 0.0
        self._dies_by = dies_by
        self._backoff = Backoff()
        self._started_at = 0.0
        self._ready_at: float | None = None
        self._lifeline = -1

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, command: Sequence[str], *descriptors: int) -> None:
        """Start the process, which inherits these descriptors."""
        self._started_at, self._ready_at, self.starts_at = time.monotonic(), None, None
        with contextlib.suppress(OSError):
            os.close(self._lifeline)
        self._lifeline, writing = os.pipe()
        try:
            self.process = _start(command, self._dies_by, (writing, *descriptors))
        finally:
            os.close(writing)

    def was_ready(self, at: float) -> None:
        """Note a time at which the child was ready, unless it was another process then."""
        if at > self._started_at and self._ready_at is None:
            self._ready_at = at
            self._backoff.was_ready()

    def plan_restart(self) -> bool:
        """Set the time of the next start after a death; false: there is none."""
        now = time.monotonic()
        delay = self._backoff.after_loss(None if self._ready_at is None else now - self._ready_at)
        if delay is None:
            _log_untuned(f"{self.death()}; {MAX_FAILED_STARTS} starts in a row failed")
            return False
        _log_untuned(f"{self.death()}; starting it again{f' in {delay:g} s' if delay else ''}")
        self.starts_at = now + delay
        return True

    def is_due(self) -> bool:
        """Whether the time has come, and all descendants of the process before are gone."""
        if self.starts_at is None or time.monotonic() < self.starts_at:
            return False
        # They hold the other end of the pipe, and nobody writes.
        gone = self.process is None or select.select([self._lifeline], [], [], 0)[0]
        return bool(gone) or time.monotonic() > self.starts_at + GONE_SECONDS

    def go_on(self) -> None:
        """Continue the process if it was stopped: it would serve nobody, nor see others end."""
        stop = None if self.process is None else continue_stopped(self.process.pid)
        if stop is not None:
            _log_untuned(f"the {self.name} was stopped by {stop.name}; continuing it")

    def death(self) -> str:
        """How the child was killed."""
        assert self.process is not None
        return f"the {self.name} was killed by {signal.Signals(-self.process.returncode).name}"

    def exit_code(self) -> int:
        """As a shell gives it."""
        assert self.process is not None
        code = self.process.returncode
        return code if code >= 0 else 128 - code


class Supervisor:
    """The frontend and the workers' launcher."""

    def __init__(self, frontend: Callable[[int], Sequence[str]], workers: Sequence[str]) -> None:
        self._frontend_command = frontend
        self._workers_command = workers
        self._frontend = Child("frontend", dies_by=signal.SIGKILL)
        self._workers = Child("workers' launcher", dies_by=signal.SIGTERM)
        self._socket: socket.socket | None = None
        self._flags: Sequence[str] = ()
        self._was_ready = False
        self._stopping = False

    def run(self) -> int:
        """Returns the exit code when one of them has ended for good."""
        while True:
            self._read_messages()
            self._frontend.go_on()
            self._workers.go_on()
            code = self._code_of_frontend()
            if code is None:
                code = self._code_of_workers()
            if code is not None:
                return code
            if self._workers.is_due():
                self._workers.start(self._workers_command)
            if self._frontend.is_due():
                self._start_frontend()
            self._wait(self._seconds_to_wait())

    def end(self) -> None:
        """End both, and what they started."""
        _end(*(each.process for each in (self._frontend, self._workers) if each.process))

    def _code_of_frontend(self) -> int | None:
        """What to exit with because of the frontend; None: go on."""
        child = self._frontend
        if child.starts_at is not None:
            return 0 if self._stopping else None
        if child.runs:
            return None
        assert child.process is not None
        killed = child.process.returncode < 0
        if self._stopping and child.process.returncode == -signal.SIGTERM:
            return 0  # it was asked to stop before it could say so
        if killed and self._stopping:
            _log_untuned(child.death())
        elif killed and child.plan_restart():
            return None
        return child.exit_code()

    def _code_of_workers(self) -> int | None:
        """What to exit with because of the launcher; None: go on."""
        child = self._workers
        if child.starts_at is not None or child.runs:
            return None
        assert child.process is not None
        if child.process.returncode < 0 and child.plan_restart():
            return None
        if self._was_ready:  # else no client has anything to hear
            self._tell_that_workers_ended()
        return child.exit_code()

    def _start_frontend(self) -> None:
        """Start the frontend, after the first time where the one before listened."""
        if self._socket is not None:
            self._socket.close()
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            command = [*self._frontend_command(theirs.fileno()), *self._flags]
            self._frontend.start(command, theirs.fileno())

    def _read_messages(self) -> None:
        """Take in when the service was ready, and the flags of the frontend's successor."""
        if self._socket is None:
            return
        with contextlib.suppress(BlockingIOError, ConnectionError):
            for line in self._socket.recv(1 << 20).splitlines():
                message = json.loads(line)
                self._flags = message["flags"]
                self._was_ready = True
                self._frontend.was_ready(message["ready_at"])
                self._workers.was_ready(message["ready_at"])

    def _tell_that_workers_ended(self) -> None:
        """Close our end of the socket's way to the frontend, and let the frontend end by itself."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while self._frontend.runs and time.monotonic() < deadline:
            self._wait(deadline - time.monotonic())

    def _seconds_to_wait(self) -> float:
        times = [each.starts_at for each in (self._frontend, self._workers)]
        due = min((at for at in times if at is not None), default=math.inf)
        return max(_POLL_SECONDS, due - time.monotonic())

    def _wait(self, seconds: float) -> None:
        """Wait for a signal; what is meant for both goes to the frontend."""
        arrived = signal.sigtimedwait(_SIGNALS, min(max(seconds, 0.0), _LONG_SECONDS))
        if arrived is None or arrived.si_signo == signal.SIGCHLD:
            return
        number = _passed_on(arrived.si_signo)
        self._stopping = self._stopping or number != signal.SIGHUP
        if self._frontend.runs:
            assert self._frontend.process is not None
            self._frontend.process.send_signal(number)


def _passed_on(number: int) -> signal.Signals:
    """The frontend's signal: SIGHUP reloads its files, unless a closed terminal sent it."""
    reload = number == signal.SIGHUP and not sys.stderr.isatty()
    return signal.SIGHUP if reload else signal.SIGTERM


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Signals wait to be asked for, so that none comes between a check and a wait."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        while signal.sigtimedwait(_SIGNALS, 0) is not None:
            pass  # what it asks for has been done
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(
    command: Sequence[str], dies_by: signal.Signals, descriptors: Sequence[int]
) -> subprocess.Popen[bytes]:
    """Start a child that dies with this process, in a session of its own: Ctrl-C is for us."""
    parent = os.getpid()

    def in_child() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        die_with(parent, dies_by)

    return subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=in_child,
        pass_fds=descriptors,
    )


def _end(*children: subprocess.Popen[bytes]) -> None:
    """End children and what they started: ask, wait, kill."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + KILL_AFTER_SECONDS
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _log_untuned(line: str) -> None:
    sys.stderr.write(f"switchyard: {line}\n")
    sys.stderr.flush()
