"""The replicas of attention, and which of them takes a request.

Knows nothing of the queue, or of what a replica does with its sequences.
"""

from __future__ import annotations

from frontend.scheduler.kept_states import kept_states
from frontend.scheduler.kv_blocks import BlockPool
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.prefix_match import Matched
from frontend.scheduler.replica import Replica
from frontend.scheduler.sequence import Sequence
from frontend.scheduler.step import ReplicaBatch

BUSIER_SHARE = 8
"""A replica is clearly busier when it runs max_batch_size / BUSIER_SHARE more than another."""


def make_replicas(limits: SchedulerLimits) -> list[Replica]:
    """Empty replicas, as many as the limits say."""
    return [
        Replica(
            index,
            BlockPool(limits.num_blocks, limits.block_size, len(limits.windows)),
            limits.groups,
            num_slots=limits.max_batch_size,
            enable_prefix_cache=limits.enable_prefix_cache,
            states=kept_states(limits),
        )
        for index in range(limits.num_replicas)
    ]


def choose_replica(
    replicas: list[Replica],
    batches: list[ReplicaBatch],
    sequence: Sequence,
    limits: SchedulerLimits,
) -> tuple[Replica, Matched] | None:
    """Of the replicas with room choose the one with the longest prefix, unless clearly busier.

    Args:
        batches: of the step that is being made, one per replica.

    Returns:
        The replica, and its blocks that hold a prefix of the sequence; None: no replica has room.
    """
    budget = limits.max_num_batched_tokens
    choices = []
    for replica, batch in zip(replicas, batches, strict=True):
        if batch.total_tokens < budget:
            matched = replica.match(sequence)
            if replica.has_room(sequence, matched):
                choices.append((replica, matched))
    if not choices:
        return None
    slack = max(1, limits.max_batch_size // BUSIER_SHARE)
    max_running = min(replica.num_running for replica, _ in choices) + slack
    fair = [choice for choice in choices if choice[0].num_running <= max_running]
    return min(fair, key=lambda choice: (-len(choice[1][0]), choice[0].num_running))
