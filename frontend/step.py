"""What one step is: for every replica, its rows as columns.

Owns the shape of a step between scheduler and worker group; worker.proto says what the columns
mean. Knows nothing of queues, or of how a step travels.
"""

from __future__ import annotations

import dataclasses

from frontend.sequence import Sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewSequence:
    """What a replica learns once of the sequence that takes ``slot``; see worker.proto."""

    slot: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    suppressed_token_ids: list[int]
    suppress_until: int


@dataclasses.dataclass(slots=True)
class Slice:
    """One replica's share of a step: R rows, the first ``num_decodes`` of them with one token.

    Attributes:
        slots, positions, num_new_blocks: one value a row.
        num_tokens, draws: one value a row after the decodes.
        token_ids, new_blocks: values of all rows, one row after the other.
        total_tokens: tokens of all rows.
        num_draws: tokens the replica answers with, in the order of the rows that draw.
        sequences: whose row it is; stays in the frontend.
    """

    new_sequences: list[NewSequence] = dataclasses.field(default_factory=list)
    slots: list[int] = dataclasses.field(default_factory=list)
    positions: list[int] = dataclasses.field(default_factory=list)
    num_decodes: int = 0
    num_tokens: list[int] = dataclasses.field(default_factory=list)
    token_ids: list[int] = dataclasses.field(default_factory=list)
    draws: list[bool] = dataclasses.field(default_factory=list)
    num_new_blocks: list[int] = dataclasses.field(default_factory=list)
    new_blocks: list[int] = dataclasses.field(default_factory=list)
    total_tokens: int = 0
    num_draws: int = 0
    sequences: list[Sequence] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step of all replicas; a replica with nothing to do has an empty slice."""

    step_id: int
    slices: list[Slice]
    max_replica_tokens: int
