"""Which requests may be what makes the workers crash.

Owns the rule: what was in flight at two losses without a new token of it between is suspect and
runs alone; what was alone in flight at a third is convicted. Knows nothing of queues.
"""

from __future__ import annotations

from collections.abc import Sequence as ListOf

from frontend.errors import Code, RequestError
from frontend.requests.request import Request
from frontend.scheduler.sequence import Phase, Sequence

CRASHES_OF_A_SUSPECT = 2


class Quarantine:
    """Suspected sequences in the order in which they run alone."""

    __slots__ = ("_line",)

    def __init__(self) -> None:
        self._line: list[Sequence] = []

    def next(self) -> Sequence | None:
        """Who must run alone now; a new token of it, or its end, clears a suspect."""
        line = self._line
        while line and (not line[0].crashes or line[0].phase is Phase.DONE):
            del line[0]
        return line[0] if line else None

    def accuse(self, in_flight: ListOf[Sequence]) -> Sequence | None:
        """The workers were lost over these; the one that is convicted of it, if any."""
        alone = self.next()
        for sequence in in_flight:
            sequence.crashes += 1
            if sequence.crashes == CRASHES_OF_A_SUSPECT:
                self._line.append(sequence)
        return alone if alone in in_flight else None


def poison_error(request: Request) -> RequestError:
    """What a convicted request ends with."""
    return RequestError(
        Code.INTERNAL,
        f"request {request.id} was alone when the workers crashed over it for the third time; "
        "do not send it again",
        reason="POISON",
    )
