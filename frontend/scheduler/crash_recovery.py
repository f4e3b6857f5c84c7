"""Which requests go on after a loss of the workers, and which request crashes them.

All go on, but those that the next workers' cache cannot hold, and one that crashes the workers.
To find that one: a sequence that was in flight at two losses, without a new token between them, is
quarantined and runs alone, on workers that have stood for a while, since a loss at their start is
theirs. One that was alone in flight at two such losses, the other suspects run between them, is the
cause. Knows nothing of queues and connections.
"""

from __future__ import annotations

from frontend.errors import Code, RequestError
from frontend.requests.request import Request
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.sequence import Phase, Sequence, check_fits

CRASHES_BEFORE_QUARANTINE = 2
CRASHES_ALONE = 2
"""Losses with nobody else in flight, which convict: one may come from outside by chance."""

SETTLE_SECONDS = 2.0
"""How long workers stand before a suspect runs on them: those that something outside kills as soon
as they are ready, or whose device is sick, are lost without it."""


class Quarantine:
    """Quarantined sequences, in the order in which they run alone.

    Attributes:
        opens_at: when the present workers have stood long enough for them.
    """

    __slots__ = ("_line", "opens_at")

    def __init__(self) -> None:
        self._line: list[Sequence] = []
        self.opens_at = 0.0

    def next(self) -> Sequence | None:
        """The sequence that must run alone now; a new token of it, or its end, releases it."""
        line = self._line
        while line and (not line[0].crashes or line[0].phase is Phase.DONE):
            del line[0]
        return line[0] if line else None

    def record_crash(self, in_flight: list[Sequence], now: float) -> Sequence | None:
        """Count a loss of the workers against the sequences in flight.

        Args:
            now: when the next workers are ready.

        Returns:
            The sequence that caused it, which must end; None while that is not known.
        """
        self.opens_at = now + SETTLE_SECONDS
        alone = self.next()
        for sequence in in_flight:
            sequence.crashes += 1
            if sequence.crashes == CRASHES_BEFORE_QUARANTINE:
                self._line.append(sequence)
        if alone is None or in_flight != [alone]:
            return None
        self._line.append(self._line.pop(0))  # the others first
        return alone if alone.crashes == CRASHES_BEFORE_QUARANTINE + CRASHES_ALONE else None


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
        f"request {request.id} was alone in flight at {CRASHES_ALONE} crashes of the workers; "
        "do not send it again",
        reason="POISON",
    )
