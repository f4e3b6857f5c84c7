"""When a process that died is started again: one rule for all that are kept alive.

Knows nothing of what the process does.
"""

from __future__ import annotations

import dataclasses

FIRST_DELAY = 0.2
LONGEST_DELAY = 30.0
STABLE_SECONDS = 10.0
"""A process that was ready for so long begins a new row of losses."""

MAX_FAILED_STARTS = 5


@dataclasses.dataclass(slots=True)
class Backoff:
    """Delays that grow with each loss in a row, and an end after too many failed starts.

    Attributes:
        losses: in this row.
        failed_starts: since the process was last ready.
    """

    losses: int = 0
    failed_starts: int = 0

    def was_ready(self) -> None:
        """Begin to count failed starts anew."""
        self.failed_starts = 0

    def after_loss(self, ready_seconds: float | None) -> float | None:
        """Count a loss.

        Args:
            ready_seconds: how long the process had been ready; None: it never was.

        Returns:
            Seconds until the next start; None: there is none.
        """
        if ready_seconds is None:
            self.failed_starts += 1
            if self.failed_starts >= MAX_FAILED_STARTS:
                return None
        elif ready_seconds >= STABLE_SECONDS:
            self.losses = 0
        self.losses += 1
        if self.losses == 1:
            return 0.0
        return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (self.losses - 2))
