"""How far the reading of weights is: a bar on a terminal, elsewhere a line now and then.

Owns what is shown and how often. Ranks read side by side, and about as much: the first of a machine
speaks for all.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

_BAR_SECONDS, _LINE_SECONDS = 0.2, 10.0
_WIDTH = 30
_CLEAR_LINE = "\x1b[K"

Progress = Callable[[int, int], None]
"""Called with the bytes that were read, and those there are to read."""


def load_progress(shown: str) -> Progress:
    """What tells of this rank's progress on stderr.

    Args:
        shown: "bar", "lines", or "auto": a bar if stderr is a terminal.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return lambda done, total: None
    as_bar = shown == "bar" or (shown == "auto" and sys.stderr.isatty())
    return LoadProgress(sys.stderr.write, as_bar=as_bar)


class LoadProgress:
    """Shows progress at most every so often; a load that is over before that shows nothing.

    Args:
        write: takes what is shown.
        as_bar: on one line of a terminal, which whatever comes next may overwrite.
        clock: tells seconds.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        *,
        as_bar: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._as_bar = as_bar
        self._clock = clock
        self._interval = _BAR_SECONDS if as_bar else _LINE_SECONDS
        self._due = clock() + self._interval

    def __call__(self, done: int, total: int) -> None:
        """Show the bytes that were read, of those there are to read."""
        if done == total:
            if self._as_bar:
                self._write(_CLEAR_LINE)
        elif self._clock() >= self._due:
            self._due = self._clock() + self._interval
            self._write(self._form(done, total))

    def _form(self, done: int, total: int) -> str:
        amount = f"{done / 1e9:.1f} of {total / 1e9:.1f} GB"
        if not self._as_bar:
            return f"reading weights: {amount}\n"
        bar = "█" * (_WIDTH * done // total)
        return f"{_CLEAR_LINE}reading weights {bar:░<{_WIDTH}} {amount}\r"
