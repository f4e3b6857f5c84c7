"""The queue: whose turn it is among sequences that hold no slot.

Owns the order. Sequences that have run before come first, oldest first. Of the others the lowest
priority value comes first, within it the key that has been given least, within a key the oldest:
virtual token counters, as in Sheng et al., "Fairness in Serving Large Language Models" (2024).
Knows no slots, blocks or clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from frontend.scheduler.sequence import Sequence


class WaitingQueue:
    """Sequences in the order of their admission, which ``charge`` changes between keys.

    Attributes:
        num_tokens: of all that wait.
    """

    __slots__ = ("_fresh", "_given", "_resumed", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self._resumed: deque[Sequence] = deque()
        # Never an empty level or an empty line of a key.
        self._fresh: dict[int, dict[str, deque[Sequence]]] = {}
        self._given: dict[str, int] = {}

    def __len__(self) -> int:
        fresh = (len(line) for level in self._fresh.values() for line in level.values())
        return len(self._resumed) + sum(fresh)

    def __bool__(self) -> bool:
        return bool(self._resumed or self._fresh)

    def clear_resumed(self) -> None:
        """Forget those that have run; of the others it stays whose turn it is."""
        self.num_tokens -= sum(len(sequence.tokens) for sequence in self._resumed)
        self._resumed.clear()

    def fresh(self) -> Iterator[Sequence]:
        """Those that never ran."""
        for level in self._fresh.values():
            for line in level.values():
                yield from line

    def push(self, sequence: Sequence) -> None:
        """Add a sequence that never ran. A key that was away gets no credit for it."""
        request = sequence.request
        level = self._fresh.setdefault(request.priority, {})
        if request.key not in level:
            others = [self._given.get(key, 0) for key in level]
            self._given[request.key] = max(self._given.get(request.key, 0), min(others, default=0))
            level[request.key] = deque()
        level[request.key].append(sequence)
        self.num_tokens += len(sequence.tokens)

    def push_resumed(self, sequence: Sequence) -> None:
        """Put a sequence that has run back to where its age says."""
        line = self._resumed
        place = len(line)
        while place and line[place - 1].order > sequence.order:
            place -= 1
        line.insert(place, sequence)
        self.num_tokens += len(sequence.tokens)

    def head(self) -> Sequence:
        """Whose turn it is; there must be one."""
        if self._resumed:
            return self._resumed[0]
        level = self._fresh[min(self._fresh)]
        if len(level) == 1:
            [line] = level.values()
            return line[0]
        return min(level.items(), key=lambda item: (self._given[item[0]], item[1][0].order))[1][0]

    def remove(self, sequence: Sequence) -> None:
        """Take out one that is here; its tokens are as many as when it came."""
        self.num_tokens -= len(sequence.tokens)
        request = sequence.request
        if request.admitted:
            self._resumed.remove(sequence)
            return
        level = self._fresh[request.priority]
        line = level[request.key]
        line.remove(sequence)
        if not line:
            del level[request.key]
            if not level:
                del self._fresh[request.priority]

    def charge(self, key: str, num_tokens: int) -> None:
        """Count tokens that a key was given: a prompt's or an output's."""
        self._given[key] = self._given.get(key, 0) + num_tokens
