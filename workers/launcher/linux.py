"""What a launcher, its groups and their ranks ask of Linux to live and die together.

Knows nothing of what the processes do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Have this process, a child of ``parent``, killed when that ends, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before the line above could tell


def name_process(name: str) -> None:
    """The name that ``ps -o comm`` and ``top`` show, at most 15 bytes."""
    _LIBC.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that they can be waited for."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_session(leader: int) -> int:
    """Kill all processes of a child's session and wait until they, and all other children, are
    gone: what they held (memory, ports, sockets) is free then.

    Args:
        leader: a child that called ``os.setsid`` or is about to.

    Returns:
        Its wait status.
    """
    status = 0
    for kill in (os.killpg, os.kill):  # it may not lead a session yet
        with contextlib.suppress(ProcessLookupError):
            kill(leader, signal.SIGKILL)
    while True:
        try:
            pid, ended = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if pid == leader:
            status = ended
