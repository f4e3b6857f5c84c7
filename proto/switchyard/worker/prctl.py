"""What processes that start each other ask of Linux: to die together, a name, orphans, to go on.

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


def die_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have this process, a child of ``parent``, get a signal when that ends, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(by), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # the parent ended before the request stood


def name_process(name: str) -> None:
    """Set the name that ``ps -o comm`` and ``top`` show, at most 15 bytes."""
    _LIBC.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that they can be waited for."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def continue_stopped(child: int) -> signal.Signals | None:
    """Continue a child that was stopped.

    Returns:
        The signal that had stopped it since the last call; None: none had.
    """
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        stop = os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG)
        if stop is not None:
            os.kill(child, signal.SIGCONT)
            return signal.Signals(stop.si_status)
    return None
