"""When the interpreter looks for cycles of garbage: seldom, since every stream waits meanwhile."""

from __future__ import annotations

import gc

OBJECTS_BETWEEN = 20_000
"""New objects in use before a look at them: above the 700 of CPython, which 512 streams gain and
lose with every step (a tenth of their core), and small beside the memory of a process."""


def settle() -> None:
    """What lives now lives as long as the process and is no work for later looks."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN)
