"""The attention replicas side by side: which of them takes a sequence.

Owns the choice. Knows nothing of queues, or of what runs for how long.
"""

from __future__ import annotations

from frontend.scheduler.kv_blocks import BlockPool
from frontend.scheduler.limits import Limits
from frontend.scheduler.replica import Replica
from frontend.scheduler.sequence import Sequence
from frontend.scheduler.step import Slice

BUSIER_SHARE = 8
"""A replica is clearly busier when it runs max_batch_size / BUSIER_SHARE more than another."""


def make_replicas(limits: Limits) -> list[Replica]:
    """Empty ones, as many as there are."""
    return [
        Replica(
            index,
            BlockPool(limits.num_blocks, limits.block_size),
            num_slots=limits.max_batch_size,
            enable_prefix_cache=limits.enable_prefix_cache,
        )
        for index in range(limits.num_replicas)
    ]


def choose_replica(
    replicas: list[Replica], slices: list[Slice], sequence: Sequence, limits: Limits
) -> tuple[Replica, list[int]] | None:
    """Of the replicas with room the one with the longest prefix, unless clearly busier.

    Args:
        slices: of the step that is made, one a replica.

    Returns:
        It, and the blocks there that hold a prefix of the sequence; None: nowhere is room.
    """
    budget = limits.max_num_batched_tokens
    choices = []
    for replica, part in zip(replicas, slices, strict=True):
        if part.total_tokens < budget:
            matched = replica.match(sequence)
            if replica.has_room(sequence, matched):
                choices.append((replica, matched))
    if not choices:
        return None
    slack = max(1, limits.max_batch_size // BUSIER_SHARE)
    busiest = min(replica.num_running for replica, _ in choices) + slack
    fair = [choice for choice in choices if choice[0].num_running <= busiest]
    return min(fair, key=lambda choice: (-len(choice[1]), choice[0].num_running))
