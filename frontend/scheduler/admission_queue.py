"""The order in which sequences without a slot are admitted, and how many may wait.

Preempted sequences, which have run before, come first, oldest first. Of the new ones the lowest
priority value comes first, within it the API key that was served the fewest tokens, within a key
the oldest: virtual token counters, as in Sheng et al., "Fairness in Serving Large Language Models"
(2024). Owns the errors of a full queue and of a wait too long. Knows no slots, blocks or clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from frontend.errors import Code, RequestError, invalid_field
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.sequence import Sequence
from frontend.scheduler.step_times import StepTimes

RETRY_AFTER_SECONDS = (1.0, 60.0)
"""The least and the most that `retry_after` is for a request that finds the queue full."""

KEY_SHARE = 4
"""A key may have this many times as many places, and tokens, as it leaves free: alone 4 of 5, two
keys that flood 4 of 9 each. So there is always room for the next key (Choudhury and Hahne, "Dynamic
Queue Length Thresholds for Shared-Memory Packet Switches", 1998)."""


class AdmissionQueue:
    """Sequences in the order of their admission, which ``charge`` changes between keys.

    Attributes:
        num_tokens: tokens of all sequences that wait, but for those that are held.
    """

    __slots__ = ("_given", "_held", "_new", "_places", "_preempted", "_tokens", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self._preempted: deque[Sequence] = deque()
        # By priority, then by key; neither a level nor a key's line is ever empty.
        self._new: dict[int, dict[str, deque[Sequence]]] = {}
        self._held: dict[Sequence, list[Sequence]] = {}
        self._given: dict[str, int] = {}
        self._places: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._places.total()

    def __bool__(self) -> bool:
        """Whether a sequence may be admitted: those that are held may not."""
        return bool(self._preempted or self._new)

    def places_of(self, key: str) -> int:
        """How many sequences of a key wait."""
        return self._places[key]

    def tokens_of(self, key: str) -> int:
        """Tokens of a key's sequences, as in ``num_tokens``."""
        return self._tokens[key]

    def clear_preempted(self) -> None:
        """Forget the preempted sequences; the order of the new ones stays."""
        for sequence in self._preempted:
            self._count(sequence, -1)
        self._preempted.clear()

    def new(self) -> Iterator[Sequence]:
        """Sequences that never ran."""
        for level in self._new.values():
            for line in level.values():
                yield from (sequence for sequence in line if not sequence.has_yielded)

    def push(self, sequence: Sequence) -> None:
        """Add a sequence that never ran, or one that yielded, which is its key's next.

        A key that had none here gets no credit for that time.
        """
        request = sequence.request
        level = self._new.setdefault(request.priority, {})
        if request.key not in level:
            others = [self._given.get(key, 0) for key in level]
            self._given[request.key] = max(self._given.get(request.key, 0), min(others, default=0))
            level[request.key] = deque()
        line = level[request.key]
        (line.appendleft if sequence.has_yielded else line.append)(sequence)
        self._count(sequence, 1)

    def hold(self, leader: Sequence, followers: list[Sequence]) -> None:
        """Add sequences that have a place each, but are not admitted before ``release``."""
        self._held[leader] = followers
        for sequence in followers:
            sequence.leader = leader
            self._places[sequence.request.key] += 1

    def leaders(self) -> list[Sequence]:
        """Sequences that others are held for."""
        return list(self._held)

    def release(self, leader: Sequence) -> None:
        """Let the sequences that are held for ``leader`` be admitted, if there are any."""
        for sequence in self._held.pop(leader, ()):
            sequence.leader = None
            self._places[sequence.request.key] -= 1
            self.push(sequence)

    def push_preempted(self, sequence: Sequence) -> None:
        """Add a sequence that has run before, in the order of age."""
        line = self._preempted
        place = len(line)
        while place and line[place - 1].order > sequence.order:
            place -= 1
        line.insert(place, sequence)
        self._count(sequence, 1)

    def head(self) -> Sequence:
        """The next sequence to admit; there must be one."""
        if self._preempted:
            return self._preempted[0]
        level = self._new[min(self._new)]
        if len(level) == 1:
            [line] = level.values()
            return line[0]
        return min(level.items(), key=lambda item: (self._given[item[0]], item[1][0].order))[1][0]

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence; it must have as many tokens as when it was pushed."""
        request = sequence.request
        if sequence.leader is not None:
            self._places[request.key] -= 1
            held = self._held[sequence.leader]
            held.remove(sequence)
            if not held:
                del self._held[sequence.leader]
            sequence.leader = None
            return
        self._count(sequence, -1)
        if request.admitted and not sequence.has_yielded:
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

    def _count(self, sequence: Sequence, sign: int) -> None:
        """Count a sequence that came (1) or went (-1)."""
        key, num_tokens = sequence.request.key, sign * len(sequence.tokens)
        self._places[key] += sign
        self._tokens[key] += num_tokens
        self.num_tokens += num_tokens
        if not self._places[key]:
            del self._places[key], self._tokens[key]


def check_room(
    waiting: AdmissionQueue,
    limits: SchedulerLimits,
    times: StepTimes,
    *,
    key: str,
    num_running: int,
    num_samples: int,
    num_prompt: int,
) -> None:
    """Refuse a call when the queue is full, or its key has its share of it.

    An empty queue takes a prompt of any size.

    Args:
        key: name of the caller's API key; without keys nobody has a share.
        num_running: sequences that hold a slot.
        num_samples: sequences of the call.
        num_prompt: tokens of its prompt.

    Raises:
        RequestError: RESOURCE_EXHAUSTED, with the predicted time to compute the queued prompts.
    """
    slots, max_places = limits.max_batch_size * limits.num_replicas, limits.max_queued_requests
    if num_samples > slots + max_places:
        raise invalid_field(
            "n", f"is {num_samples}, and {slots} requests may run here, {max_places} may wait"
        )
    places = len(waiting) + num_samples - max(0, slots - num_running)
    own = waiting.places_of(key) + num_samples
    tokens, max_tokens = waiting.num_tokens + num_prompt, limits.max_queued_tokens
    own_tokens = waiting.tokens_of(key) + num_prompt
    if places > max_places:
        what = (
            f"the queue is full: {num_running} requests run, {len(waiting)} wait, "
            f"at most {max_places} may"
        )
    elif key and places > 0 and own > max(num_samples, KEY_SHARE * (max_places - places)):
        what = f"key {key} has its share of the queue: {own - num_samples} of its requests wait"
    elif waiting.num_tokens and tokens > max_tokens:
        what = (
            f"the queue is full: prompts of {waiting.num_tokens} tokens wait, this one has "
            f"{num_prompt}, at most {max_tokens} may wait"
        )
    elif key and own_tokens > max(num_prompt, KEY_SHARE * (max_tokens - tokens)):
        what = (
            f"key {key} has its share of the queue: prompts of {own_tokens - num_prompt} tokens "
            f"of it wait, this one has {num_prompt}"
        )
    else:
        return
    minimum, maximum = RETRY_AFTER_SECONDS
    raise RequestError(
        Code.RESOURCE_EXHAUSTED,
        f"{what}; try again later",
        reason="QUEUE_FULL",
        retry_after=min(max(times.predict(0, tokens), minimum), maximum),
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
