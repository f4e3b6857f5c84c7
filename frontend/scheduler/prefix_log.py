"""What the prefix caches of all replicas hold together, as numbered batches of changes.

Owns the numbers, the history that late readers are given, and when changes are recorded at all.
Knows no reader, and nothing of sequences or steps.

To whoever asks from outside the replicas are one cache: a block is stored when the first of them
has it, and removed when the last of them has lost it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from frontend.prefixes import (
    CacheBatch,
    CacheEvent,
    Cleared,
    Part,
    PrefixBlock,
    Removed,
    Stored,
)
from frontend.scheduler.kv_blocks import BlockPool

HISTORY_BLOCKS = 65_536
"""Blocks that the batches of the history may name, some 200 bytes each."""
PART_BLOCKS = 256
"""Blocks in one part of a snapshot: a message of some 16 KB with blocks of 16 tokens."""


class PrefixLog:
    """The changes of the pools that are attached, while it records.

    Numbers begin at the microseconds since 1970, so that those of a process never are those of one
    before it: a reader that comes with an older process's number is found out.

    Args:
        history_blocks: see HISTORY_BLOCKS.

    Attributes:
        number: of the newest batch.
        recording: the pools tell their changes.
        on_change: called with the first change after a `seal`.
    """

    def __init__(self, history_blocks: int = HISTORY_BLOCKS) -> None:
        self.number = self._first = time.time_ns() // 1000
        self.recording = False
        self.on_change: Callable[[], None] = lambda: None
        self._max_blocks = history_blocks
        self._num_blocks = 0
        self._whole_from = 0
        # Batches by number, without a gap up to the newest.
        self._history: dict[int, CacheBatch] = {}
        self._pools: Sequence[BlockPool] = ()
        self._copies: Counter[bytes] = Counter()
        self._pending: list[CacheEvent] = []

    def attach(self, pools: Sequence[BlockPool]) -> None:
        """Follow other pools, which are empty; those before are gone with all they held."""
        self._pools = pools
        if self.recording:
            self._observe()
            self._copies.clear()
            self._add(Cleared())

    def begin(self) -> None:
        """Record from now on."""
        self.recording = True
        self._observe()
        self._copies = Counter(each.digest for pool in self._pools for each in pool.published())

    def end(self) -> None:
        """Record no more, and forget the history; no number from before is continued."""
        self.recording = False
        for pool in self._pools:
            pool.observer = None
        self._copies.clear()
        self._pending = []
        self._history.clear()
        self._num_blocks = 0
        self.number += 1
        self._first = self.number

    def stored(self, prefix: PrefixBlock) -> None:
        """See `PoolObserver`."""
        self._copies[prefix.digest] += 1
        if self._copies[prefix.digest] > 1:
            return
        last = self._pending[-1] if self._pending else None
        if isinstance(last, Stored) and last.blocks[-1].digest == prefix.parent:
            last.blocks.append(prefix)
        else:
            self._add(Stored([prefix]))

    def removed(self, prefix: PrefixBlock) -> None:
        """See `PoolObserver`."""
        self._copies[prefix.digest] -= 1
        if self._copies[prefix.digest]:
            return
        del self._copies[prefix.digest]
        last = self._pending[-1] if self._pending else None
        if isinstance(last, Removed):
            last.digests.append(prefix.digest)
        else:
            self._add(Removed([prefix.digest]))

    def seal(self) -> None:
        """Make a batch of the changes since the last one, if there are any."""
        if not self._pending:
            return
        self.number += 1
        batch = CacheBatch(number=self.number, time=time.time(), events=self._pending)
        self._pending = []
        self._history[self.number] = batch
        self._num_blocks += _num_blocks(batch)
        while self._num_blocks > self._max_blocks:
            self._first += 1
            self._num_blocks -= _num_blocks(self._history.pop(self._first))

    def continues(self, number: int) -> bool:
        """Whether all batches after this one are in the history."""
        return self.recording and self._first <= number <= self.number

    def can_resume(self, number: int) -> bool:
        """The same for a number that a reader brings: it may be of a part of a snapshot, of which
        the other parts are not in the history."""
        return self.continues(number) and number >= self._whole_from

    def after(self, number: int) -> CacheBatch | None:
        """The batch after this one, which `continues`; None: it is to come."""
        return self._history.get(number + 1)

    def snapshot(self) -> Iterator[CacheBatch]:
        """What can be found now, as batches that end with the number of the newest.

        The first begins with `Cleared`; parents come before their children. What is found is
        decided here, and not as the batches are taken.
        """
        self.seal()
        found = {each.digest: each for pool in self._pools for each in pool.published()}
        if len(found) > PART_BLOCKS:
            self._whole_from = self.number
        return _parts(found, self.number)

    def _observe(self) -> None:
        for pool in self._pools:
            pool.observer = self

    def _add(self, event: CacheEvent) -> None:
        self._pending.append(event)
        if len(self._pending) == 1:
            self.on_change()


def _num_blocks(batch: CacheBatch) -> int:
    """Blocks that a batch names; an event without any counts as one."""
    count = 0
    for event in batch.events:
        match event:
            case Stored(blocks):
                count += len(blocks)
            case Removed(digests):
                count += len(digests)
            case Cleared():
                count += 1
    return count


def _parts(found: dict[bytes, PrefixBlock], number: int) -> Iterator[CacheBatch]:
    """A snapshot's batches; uses ``found`` up."""
    num_blocks, now = len(found), time.time()
    count = max(1, -(-num_blocks // PART_BLOCKS))
    blocks = _parents_first(found)
    for index in range(count):
        events: list[CacheEvent] = [] if index else [Cleared()]
        for _, prefix in zip(range(PART_BLOCKS), blocks, strict=False):
            last = events[-1] if events else None
            if isinstance(last, Stored) and last.blocks[-1].digest == prefix.parent:
                last.blocks.append(prefix)
            else:
                events.append(Stored([prefix]))
        yield CacheBatch(
            number=number - count + 1 + index,
            time=now,
            events=events,
            part=Part(index, count, num_blocks),
        )


def _parents_first(found: dict[bytes, PrefixBlock]) -> Iterator[PrefixBlock]:
    """All of ``found``, which is empty then, each after its parent if that is there."""
    while found:
        _, prefix = found.popitem()
        line = [prefix]
        while prefix.parent in found:
            prefix = found.pop(prefix.parent)
            line.append(prefix)
        yield from reversed(line)
