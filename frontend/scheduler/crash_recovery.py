"""Which requests go on after a loss of the workers, and which request crashes them.

All go on, but those that the next workers' cache cannot hold, and one that crashes the workers.
To find that one: a sequence that was in flight at two losses, without a new token between them, is
quarantined and runs alone. One that was quarantined and in flight at a further loss is the cause.
Knows nothing of queues and connections.
"""

from __future__ import annotations

from collections.abc import Sequence as ListOf

from frontend.errors import Code, RequestError
from frontend.requests.request import Request
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.sequence import Phase, Sequence, check_fits

CRASHES_BEFORE_QUARANTINE = 2


class Quarantine:
    """Quarantined sequences, in the order in which they run alone."""

    __slots__ = ("_line",)

    def __init__(self) -> None:
        self._line: list[Sequence] = []

    def next(self) -> Sequence | None:
        """The sequence that must run alone now; a new token of it, or its end, releases it."""
        line = self._line
        while line and (not line[0].crashes or line[0].phase is Phase.DONE):
            del line[0]
        return line[0] if line else None

    def record_crash(self, in_flight: ListOf[Sequence]) -> Sequence | None:
        """Count a loss of the workers against the sequences in flight.

        Returns:
            The sequence that caused it, which must end; None while that is not known.
        """
        alone = self.next()
        for sequence in in_flight:
            sequence.crashes += 1
            if sequence.crashes == CRASHES_BEFORE_QUARANTINE:
                self._line.append(sequence)
        return alone if alone in in_flight else None


def why_lost(sequence: Sequence, limits: SchedulerLimits) -> RequestError | None:
    """The error of an open request that cannot go on with new workers; None when it can.

    Args:
        limits: of the new workers, whose cache may be smaller.
    """
    request = sequence.request
    try:
        left = request.stops.max_new_tokens - request.num_generated
        check_fits(limits, len(sequence.tokens), left)
    except RequestError as error:
        if request.admitted:
            error.code, error.reason, error.field = Code.UNAVAILABLE, "STREAM_LOST", None
        return error
    return None


def poison_error(request: Request) -> RequestError:
    """The error of a request that crashes workers."""
    return RequestError(
        Code.INTERNAL,
        f"request {request.id} was alone when the workers crashed over it for the third time; "
        "do not send it again",
        reason="POISON",
    )
