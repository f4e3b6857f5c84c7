"""Which sequence gives up its slot, so that one key's long outputs do not hold every slot.

Owns a key's share of the slots. Whoever yields waits as the next of its own key, and mostly finds
its blocks in the prefix cache again. Without keys nobody yields.
"""

from __future__ import annotations

from collections import Counter

from frontend.scheduler.replica import Replica
from frontend.scheduler.sequence import Sequence


def yielding_sequence(replicas: list[Replica], num_slots: int, head: Sequence) -> Sequence | None:
    """The newest sequence of the key with the most slots, where ``head``'s key has fewer than its
    share of them and finds no room; None where nobody has to yield.

    A key's share is the slots divided by the keys that run or are next, at least one. A sequence
    does not yield to a lower priority.

    Args:
        head: the next sequence to be admitted.
    """
    key = head.request.key
    if not key:
        return None
    running = [sequence for replica in replicas for sequence in replica.running()]
    slots_of = Counter(sequence.request.key for sequence in running)
    share = max(1, num_slots // len({key, *slots_of}))
    busiest, most = max(slots_of.items(), key=lambda item: item[1], default=(key, 0))
    if slots_of[key] >= share or most <= share:
        return None
    if any(replica.has_room(head, replica.match(head)) for replica in replicas):
        return None
    yielding = [
        sequence
        for sequence in running
        if sequence.request.key == busiest and sequence.request.priority >= head.request.priority
    ]
    return max(yielding, key=lambda sequence: sequence.order, default=None)
