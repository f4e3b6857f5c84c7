"""States of prefixes that a replica keeps, for models whose layers keep a state.

Owns which positions' states are kept, who holds them, and which prefixes they are of. Knows nothing
of slots or of what a state is. A state that nobody holds stays until its place is needed, least
recently used first, as a KV block does.

A step keeps the state behind the last position of each chunk of a prompt that it can, so that other
sequences of the same prompt can go on there, and behind each such position of an output; of these a
sequence leaves the last one alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

from frontend.prefixes import PrefixBlock
from frontend.scheduler.kv_blocks import BlockPool
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.sequence import Sequence
from frontend.scheduler.step import ReplicaBatch


class KeptStates:
    """
    Args:
        count: states, numbered from 0.
        interval: of the positions whose states can be kept.
        block_size: tokens in a KV block: a prefix is whole blocks.
    """

    __slots__ = ("_block_size", "_interval", "_pool")

    def __init__(self, *, count: int, interval: int, block_size: int) -> None:
        self._pool = BlockPool(count, interval)
        self._interval = interval
        self._block_size = block_size

    @property
    def num_free(self) -> int:
        """States that nobody holds."""
        return self._pool.num_free

    @property
    def num_found(self) -> int:
        """States that a sequence may begin from."""
        return len(self._pool.published())

    def longest(self, prefixes: Many[PrefixBlock]) -> int:
        """Blocks of the longest leading part behind which there is a state; 0: there is none."""
        for count in range(len(prefixes), 0, -1):
            if self._pool.match(prefixes[count - 1 : count]):
                return count
        return 0

    def begin(self, sequence: Sequence, num_blocks: int) -> None:
        """Let a sequence begin behind its first ``num_blocks`` blocks, as `longest` found them."""
        if num_blocks:
            found = self._pool.match(sequence.prefixes[num_blocks - 1 : num_blocks])
            self._pool.acquire(found)
            (sequence.from_state,) = found

    def begun(self, sequence: Sequence) -> None:
        """Its first row is scheduled, which reads the state before a later step writes it."""
        if sequence.from_state >= 0:
            self._pool.free([sequence.from_state])
            sequence.from_state = -1

    def keep(self, sequence: Sequence, start: int, end: int, batch: ReplicaBatch) -> None:
        """Keep the state behind the last position that can be of the next row's, which has the
        tokens from ``start`` to ``end``; not that of a whole prompt, which nobody begins behind."""
        last = min(end, sequence.prefill_end - 1) if start < sequence.prefill_end else end
        position = last - last % self._interval
        if position <= start or position % self._block_size or not self._pool.num_free:
            return
        (state,) = self._pool.allocate(1)
        sequence.unseen_states.append((position, state))
        batch.keep_state(position, state)

    def publish(self, sequence: Sequence, num_written: int) -> None:
        """Let later sequences find what was kept behind the first ``num_written`` positions, whose
        blocks can be found."""
        unseen = sequence.unseen_states
        while unseen and unseen[0][0] <= num_written:
            position, state = unseen.pop(0)
            prefix = sequence.prefixes[position // self._block_size - 1]
            self._pool.publish(state, prefix)
            self._pool.free([state])
            if position > sequence.prefill_end:
                if sequence.decoded is not None:
                    for each in self._pool.match([sequence.decoded]):
                        self._pool.drop(each)
                sequence.decoded = prefix

    def release(self, sequence: Sequence) -> None:
        """Take back what a sequence holds; what it kept can still be found."""
        self.begun(sequence)
        for _, state in sequence.unseen_states:
            self._pool.free([state])
        sequence.unseen_states.clear()
        sequence.decoded = None


def kept_states(limits: SchedulerLimits) -> KeptStates | None:
    """Of a replica; None: the model has no such layers."""
    if not limits.state_interval:
        return None
    return KeptStates(
        count=limits.num_kept_states,
        interval=limits.state_interval,
        block_size=limits.block_size,
    )
