"""The order in which sequences without a slot are admitted, and how many may wait.

Preempted sequences, which have run before, come first, oldest first. Of the new ones the lowest
priority value comes first, within it the API key that was served the fewest tokens, within a key
the oldest: virtual token counters, as in Sheng et al., "Fairness in Serving Large Language Models"
(2024). Owns the errors of a full queue and of a wait too long. Knows no slots, blocks or clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from frontend.errors import Code, RequestError
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.sequence import Sequence
from frontend.scheduler.step_times import StepTimes

RETRY_AFTER_SECONDS = (1.0, 60.0)
"""The least and the most that `retry_after` is for a request that finds the queue full."""


class AdmissionQueue:
    """Sequences in the order of their admission, which ``charge`` changes between keys.

    Attributes:
        num_tokens: tokens of all sequences that wait.
    """

    __slots__ = ("_given", "_new", "_preempted", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self._preempted: deque[Sequence] = deque()
        # By priority, then by key; neither a level nor a key's line is ever empty.
        self._new: dict[int, dict[str, deque[Sequence]]] = {}
        self._given: dict[str, int] = {}

    def __len__(self) -> int:
        new = (len(line) for level in self._new.values() for line in level.values())
        return len(self._preempted) + sum(new)

    def __bool__(self) -> bool:
        return bool(self._preempted or self._new)

    def clear_preempted(self) -> None:
        """Forget the preempted sequences; the order of the new ones stays."""
        self.num_tokens -= sum(len(sequence.tokens) for sequence in self._preempted)
        self._preempted.clear()

    def new(self) -> Iterator[Sequence]:
        """Sequences that never ran."""
        for level in self._new.values():
            for line in level.values():
                yield from line

    def push(self, sequence: Sequence) -> None:
        """Add a sequence that never ran; a key that had none here gets no credit for that time."""
        request = sequence.request
        level = self._new.setdefault(request.priority, {})
        if request.key not in level:
            others = [self._given.get(key, 0) for key in level]
            self._given[request.key] = max(self._given.get(request.key, 0), min(others, default=0))
            level[request.key] = deque()
        level[request.key].append(sequence)
        self.num_tokens += len(sequence.tokens)

    def push_preempted(self, sequence: Sequence) -> None:
        """Add a sequence that has run before, in the order of age."""
        line = self._preempted
        place = len(line)
        while place and line[place - 1].order > sequence.order:
            place -= 1
        line.insert(place, sequence)
        self.num_tokens += len(sequence.tokens)

    def head(self) -> Sequence:
        """The next sequence to admit; the queue must not be empty."""
        if self._preempted:
            return self._preempted[0]
        level = self._new[min(self._new)]
        if len(level) == 1:
            [line] = level.values()
            return line[0]
        return min(level.items(), key=lambda item: (self._given[item[0]], item[1][0].order))[1][0]

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence; it must have as many tokens as when it was pushed."""
        self.num_tokens -= len(sequence.tokens)
        request = sequence.request
        if request.admitted:
            self._preempted.remove(sequence)
            return
        level = self._new[request.priority]
        line = level[request.key]
        line.remove(sequence)
        if not line:
            del level[request.key]
            if not level:
                del self._new[request.priority]

    def charge(self, key: str, num_tokens: int) -> None:
        """Count tokens that a key was given: a prompt's or an output's."""
        self._given[key] = self._given.get(key, 0) + num_tokens


def check_room(
    waiting: AdmissionQueue,
    limits: SchedulerLimits,
    times: StepTimes,
    *,
    num_running: int,
    num_prompt: int,
) -> None:
    """Refuse a request when the queue is full. An empty queue takes a prompt of any size.

    Raises:
        RequestError: RESOURCE_EXHAUSTED, with the predicted time to compute the queued prompts.
    """
    num_waiting, waiting_tokens = len(waiting), waiting.num_tokens
    free_slots = limits.max_batch_size * limits.num_replicas - num_running
    if num_waiting >= limits.max_queued_requests + free_slots:
        what = (
            f"{num_running} requests run, {num_waiting} wait, "
            f"at most {limits.max_queued_requests} may"
        )
    elif num_waiting and waiting_tokens + num_prompt > limits.max_queued_tokens:
        what = (
            f"prompts of {waiting_tokens} tokens wait, this one has {num_prompt}, "
            f"at most {limits.max_queued_tokens} may wait"
        )
    else:
        return
    minimum, maximum = RETRY_AFTER_SECONDS
    raise RequestError(
        Code.RESOURCE_EXHAUSTED,
        f"the queue is full: {what}; try again later",
        reason="QUEUE_FULL",
        retry_after=min(max(times.predict(0, waiting_tokens + num_prompt), minimum), maximum),
    )


def expired(num_waiting: int) -> RequestError:
    """The error of a request that waited longer than its max_queue_time."""
    return RequestError(
        Code.DEADLINE_EXCEEDED,
        f"not admitted within max_queue_time, {num_waiting} requests still wait; "
        "raise it or try again later",
        reason="QUEUE_DEADLINE",
        field="max_queue_time",
    )
