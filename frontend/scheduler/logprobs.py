"""Reading columns of log-probabilities, token by token.

Knows how many values a sequence asked for, and nothing of steps.
"""

from __future__ import annotations

from frontend.requests.request import TokenLogprobs
from frontend.scheduler.sequence import Sequence
from frontend.scheduler.step import LogprobColumns


class LogprobReader:
    """Goes through the columns in their order."""

    __slots__ = ("_columns", "_next", "_next_top")

    def __init__(self, columns: LogprobColumns) -> None:
        self._columns = columns
        self._next = self._next_top = 0

    def read(self, sequence: Sequence) -> TokenLogprobs | None:
        """The next token's; None for a sequence that asked for none, which has no values."""
        asked = sequence.request.sampling
        if not asked.num_logprobs:
            return None
        columns, top = self._columns, self._next_top
        self._next += 1
        self._next_top = top_end = top + asked.num_logprobs - 1
        return TokenLogprobs(
            columns.logprobs[self._next - 1],
            columns.top_ids[top:top_end],
            columns.top_logprobs[top:top_end],
        )
