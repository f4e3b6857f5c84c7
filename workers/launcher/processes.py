"""The end of a session of processes, with all that they held."""

from __future__ import annotations

import contextlib
import os
import signal


def kill_session(leader: int) -> int:
    """Kill all processes of a child's session, and wait until they are gone.

    What they held (memory, ports, sockets) is free afterwards.

    Args:
        leader: a child that called ``os.setsid`` or is about to.

    Returns:
        Its wait status.
    """
    for kill in (os.killpg, os.kill):  # the child may not lead a session yet
        with contextlib.suppress(ProcessLookupError):
            kill(leader, signal.SIGKILL)
    _, status = os.waitpid(leader, 0)
    while True:
        try:
            os.waitpid(-leader, 0)  # its orphans, which are ours now
        except ChildProcessError:
            return status
