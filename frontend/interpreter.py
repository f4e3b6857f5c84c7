"""How the interpreter is set: the loop, on which every stream waits, goes before all else."""

from __future__ import annotations

import ctypes
import gc
import sys

OBJECTS_BETWEEN = 20_000
"""New objects in use before a look at them: above the 700 of CPython, which 512 streams gain and
lose with every step (a tenth of their core), and small beside the memory of a process."""

SWITCH_SECONDS = 0.001
"""The loop has the interpreter back from a thread after this time, five times sooner than usual: a
turn of the loop that meets a busy thread waits so long."""

_M_MXFAST = 1  # of mallopt(3)


def start() -> None:
    """Look for no garbage before `settle`: of what a start imports and reads little is any."""
    gc.disable()


def settle() -> None:
    """Look for cycles of garbage seldom, and let threads wait for the loop.

    What lives now lives as long as the process and is no work for later looks.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(OBJECTS_BETWEEN)
    sys.setswitchinterval(SWITCH_SECONDS)
    _join_freed_memory()


def _join_freed_memory() -> None:
    """Have glibc join pieces of memory when they are freed.

    It would keep small ones, half a million after a long text was encoded, until a large one is
    freed: the loop, which frees a list, would stand still for up to 30 ms.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MXFAST, 0)
