"""The two processes of `switchyard serve`, which live and die together.

Owns the child processes and the signals between them. Knows neither what they do nor their flags.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

# Between SIGTERM and SIGKILL for a child whose sibling is gone.
KILL_AFTER_SECONDS = 10.0


# What a frontend whose workers ended for good gets to tell its clients, before SIGTERM.
LAST_WORDS_SECONDS = 5.0


_LONG_SECONDS = 3600.0  # sigtimedwait knows no infinity


_PR_SET_PDEATHSIG = 1


_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


_LIBC = ctypes.CDLL(None, use_errno=True)


def supervise(*, frontend: Callable[[int], Sequence[str]], workers: Sequence[str]) -> int:
    """Run two commands as one: what ends first ends the other.

    SIGTERM and SIGINT go to the frontend, which drains and ends; the workers go after it. A
    frontend without workers gets a while to end by itself. Both die with this process, also when
    it is killed.

    Args:
        frontend: its command, given the process id of the workers' launcher.
        workers: the launcher's.

    Returns:
        The exit code of the one that ended first, 128 + the signal for one that was killed.
    """
    with _blocked_signals():
        group = _start(workers, dies_by=signal.SIGTERM)
        front = None
        try:
            front = _start(frontend(group.pid), dies_by=signal.SIGKILL)
            _wait(front, group)
            first = front if front.returncode is not None else group
            if first is group:
                _wait(front, seconds=LAST_WORDS_SECONDS)
        finally:
            _end(*(child for child in (front, group) if child is not None))
    if first.returncode >= 0:
        return first.returncode
    name = "frontend" if first is front else "workers' launcher"
    by = signal.Signals(-first.returncode).name
    sys.stderr.write(f"switchyard: the {name} was killed by {by}\n")
    return 128 - first.returncode


def _wait(
    front: subprocess.Popen[bytes],
    *others: subprocess.Popen[bytes],
    seconds: float = float("inf"),
) -> None:
    """Until a child has ended or time is up; a signal for us goes to the frontend."""
    children = (front, *others)
    deadline = time.monotonic() + seconds
    while all(child.poll() is None for child in children):
        left = min(deadline - time.monotonic(), _LONG_SECONDS)
        if left <= 0:
            return
        arrived = signal.sigtimedwait(_SIGNALS, left)
        if arrived is not None and arrived.si_signo != signal.SIGCHLD:
            front.send_signal(_passed_on(arrived.si_signo))


def _passed_on(number: int) -> signal.Signals:
    """What the frontend is told: SIGHUP reloads its files, unless a closed terminal sent it."""
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
            pass  # asked for what has been done
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(command: Sequence[str], *, dies_by: signal.Signals) -> subprocess.Popen[bytes]:
    """Start a child that dies with this process, in a session of its own: Ctrl-C is for us."""
    parent = os.getpid()

    def in_child() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(dies_by), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it died before the request stood

    # gRPC's core writes lines of its own unless told not to; what matters comes as an error.
    environment = {"GRPC_VERBOSITY": "NONE"} | os.environ
    return subprocess.Popen(command, start_new_session=True, preexec_fn=in_child, env=environment)


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
