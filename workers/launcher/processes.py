"""The end of a session of processes, with all that they held."""

from __future__ import annotations

import contextlib
import os
import signal


def kill_session(leader: int) -> int:
    """Kill all processes of a child's session, and wait until these and all children are gone.

    What they held (memory, ports, sockets) is free afterwards.

    Args:
        leader: a child that called ``os.setsid`` or is about to.

    Returns:
        Its wait status.
    """
    status = 0
    for kill in (os.killpg, os.kill):  # the child may not lead a session yet
        with contextlib.suppress(ProcessLookupError):
            kill(leader, signal.SIGKILL)
    while True:
        try:
            pid, ended = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if pid == leader:
            status = ended
