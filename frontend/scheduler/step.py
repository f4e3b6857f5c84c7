"""One step, as rows in columns for every replica, and its results.

Owns the shape of both between scheduler and worker group; worker.proto says what the columns and
the stats mean. Knows nothing of queues, or of how a step travels.
"""

from __future__ import annotations

import dataclasses

from frontend.requests.request import SamplingParams, TriggeredMask
from frontend.scheduler.sequence import Sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewSequence:
    """What a replica must know of the sequence that takes ``slot``; see worker.proto.

    Attributes:
        history: its tokens so far, the prompt's first; empty when the workers need not know them.
        num_prompt: how many of them are the prompt's.
        from_state: the kept state that it begins from; -1: none.
    """

    slot: int
    sampling: SamplingParams
    suppressed_token_ids: list[int]
    suppress_until: int
    history: list[int]
    num_prompt: int
    prompt_logprobs: bool
    from_state: int = -1

    @classmethod
    def of(cls, sequence: Sequence) -> NewSequence:
        """What workers must know of a sequence that has just got its slot."""
        sampling = sequence.request.sampling
        suppressed, suppress_until = sequence.suppression()
        return cls(
            slot=sequence.slot,
            sampling=sampling,
            suppressed_token_ids=suppressed,
            suppress_until=suppress_until,
            history=sequence.tokens.copy() if sampling.needs_history else [],
            num_prompt=sequence.num_prompt,
            prompt_logprobs=sequence.wants_prompt_logprobs,
            from_state=sequence.from_state,
        )


@dataclasses.dataclass(slots=True)
class ReplicaBatch:
    """One replica's share of a step: R rows, the first ``num_decodes`` of them with one token.

    Attributes:
        slots, positions: one value a row.
        num_new_blocks: one value a row and group of layers.
        num_tokens, draws: one value a row after the decodes.
        token_ids, new_blocks: values of all rows, one row after the other.
        total_tokens: tokens of all rows.
        long_tokens: of these, of long prompts.
        num_draws: rows that draw a token.
        masked_draws, draw_masks, mask_triggers: draws that a matcher narrows, and of each the mask
            and the token behind which it holds, -1: behind any.
        keep_rows, keep_positions, keep_states: rows whose state is kept, behind which position, and
            as which.
        sequences: the sequence of each row; stays in the frontend.
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
    long_tokens: int = 0
    num_draws: int = 0
    masked_draws: list[int] = dataclasses.field(default_factory=list)
    draw_masks: list[bytes] = dataclasses.field(default_factory=list)
    mask_triggers: list[int] = dataclasses.field(default_factory=list)
    keep_rows: list[int] = dataclasses.field(default_factory=list)
    keep_positions: list[int] = dataclasses.field(default_factory=list)
    keep_states: list[int] = dataclasses.field(default_factory=list)
    sequences: list[Sequence] = dataclasses.field(default_factory=list)

    def keep_state(self, position: int, state: int) -> None:
        """Of the row that is added next."""
        self.keep_rows.append(len(self.slots))
        self.keep_positions.append(position)
        self.keep_states.append(state)

    def mask_draw(self, draw: int, mask: TriggeredMask) -> None:
        """Narrow draw number ``draw``, unless the mask allows any token."""
        if mask.bits:
            self.masked_draws.append(draw)
            self.draw_masks.append(mask.bits)
            self.mask_triggers.append(mask.trigger)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step of all replicas; a replica with nothing to do has an empty batch."""

    step_id: int
    batches: list[ReplicaBatch]
    max_replica_tokens: int

    @property
    def size(self) -> tuple[int, int]:
        """The most decodes, and the most other tokens, of any replica."""
        return (
            max(batch.num_decodes for batch in self.batches),
            max(batch.total_tokens - batch.num_decodes for batch in self.batches),
        )

    @property
    def decode_only(self) -> bool:
        """No replica has a row after its decodes."""
        return not any(batch.num_tokens for batch in self.batches)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What a step took and the least it could take; worker.proto's StepResult defines each value.

    Attributes:
        device_seconds: of the slowest rank, its wait for the others included.
        floor_seconds: the most of any rank; 0: unknown.
        idle_seconds: the least of any rank, since a rank that begins earlier waits for the others
            inside its device_seconds.
        bytes_moved, flops: of all ranks together.
    """

    device_seconds: float = 0.0
    floor_seconds: float = 0.0
    idle_seconds: float = 0.0
    bytes_moved: float = 0.0
    flops: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepLogprobs:
    """Log-probabilities of some tokens, one after the other; ``top_*`` hold as many for each token
    as its request wants."""

    logprobs: list[float] = dataclasses.field(default_factory=list)
    top_ids: list[int] = dataclasses.field(default_factory=list)
    top_logprobs: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What one replica drew for its batch.

    Attributes:
        tokens: one per draw, in the order of the rows; the link's NOT_FINITE if nothing was drawn.
        logprobs: of the draws whose request wants them.
        prompt_logprobs: of the prompt tokens that follow each row's tokens, for requests that want
            them.
    """

    tokens: list[int]
    logprobs: StepLogprobs = dataclasses.field(default_factory=StepLogprobs)
    prompt_logprobs: StepLogprobs = dataclasses.field(default_factory=StepLogprobs)


@dataclasses.dataclass(frozen=True, slots=True)
class StepResults:
    """The results of a step: what each replica drew, and what the step took."""

    drawn: list[Drawn]
    stats: StepStats
