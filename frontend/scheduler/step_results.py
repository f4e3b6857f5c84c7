"""What one replica drew, given to the sequences of its slice.

Owns the pairing of rows with tokens and log-probabilities, and what becomes reusable of the prefix
cache. Knows no queue: who ended is the scheduler's to withdraw.
"""

from __future__ import annotations

from frontend.requests.output import TokenLogprobs
from frontend.scheduler.replica import Replica
from frontend.scheduler.sequence import Phase, Sequence
from frontend.scheduler.step import Drawn, LogprobColumns, ReplicaBatch

Ended = list[tuple[Sequence, Phase]]
"""Sequences that a token ended, and the phase each was in."""


def take_results(
    replica: Replica, batch: ReplicaBatch, drawn: Drawn, now: float
) -> tuple[int, Ended]:
    """Give every row that drew its token.

    Returns:
        How many tokens requests were given, and what ended.
    """
    tokens = drawn.tokens
    assert len(tokens) == batch.num_draws, f"{len(tokens)} of {batch.num_draws} tokens"
    logprobs = LogprobReader(drawn.logprobs) if drawn.logprobs.logprobs else None
    ended: Ended = []
    num_taken = _take_decodes(replica, batch, tokens, logprobs, ended, now)
    if drawn.prompt_logprobs.logprobs:
        _take_prompt_logprobs(batch, drawn.prompt_logprobs)
    num_taken += _take_prefills(replica, batch, tokens, logprobs, ended, now)
    return num_taken, ended


def _take_decodes(
    replica: Replica,
    batch: ReplicaBatch,
    tokens: list[int],
    logprobs: LogprobReader | None,
    ended: Ended,
    now: float,
) -> int:
    block_size = replica.pool.block_size
    running, done = Phase.RUNNING, Phase.DONE
    num_taken = 0
    # Decodes draw first, so the shorter list of rows ends the loop.
    for sequence, token in zip(batch.sequences[: batch.num_decodes], tokens, strict=False):
        phase = sequence.phase
        beside = logprobs.read(sequence) if logprobs is not None else None
        if phase is done:
            continue
        # What led to no token is not for others to reuse.
        if phase is running and token >= 0 and len(sequence.tokens) % block_size == 0:
            replica.publish(sequence, len(sequence.tokens))
        num_taken += token >= 0
        if sequence.take(token, now, beside):
            ended.append((sequence, phase))
    return num_taken


def _take_prefills(
    replica: Replica,
    batch: ReplicaBatch,
    tokens: list[int],
    logprobs: LogprobReader | None,
    ended: Ended,
    now: float,
) -> int:
    drawn = iter(tokens[batch.num_decodes :])
    num_taken = 0
    for row in range(batch.num_decodes, len(batch.sequences)):
        sequence = batch.sequences[row]
        phase = sequence.phase
        index = row - batch.num_decodes
        draws = batch.draws[index]
        token = next(drawn) if draws else None
        beside = logprobs.read(sequence) if logprobs is not None and draws else None
        if phase is Phase.RUNNING and (token is None or token >= 0):
            replica.publish(sequence, batch.positions[row] + batch.num_tokens[index])
        if token is not None and phase is not Phase.DONE:
            num_taken += token >= 0
            if sequence.take(token, now, beside):
                ended.append((sequence, phase))
    return num_taken


def _take_prompt_logprobs(batch: ReplicaBatch, columns: LogprobColumns) -> None:
    """Give each prompt that asked the log-probabilities of what this step computed of it."""
    reader = LogprobReader(columns)
    for row in range(batch.num_decodes, len(batch.sequences)):
        sequence = batch.sequences[row]
        if not sequence.wants_prompt_logprobs:
            continue
        start, num_tokens = batch.positions[row], batch.num_tokens[row - batch.num_decodes]
        last = min(start + num_tokens, sequence.num_prompt - 1)
        read = [reader.read(sequence) for _ in range(start, last)]
        sequence.request.prompt_logprobs += [each for each in read if each is not None]


class LogprobReader:
    """Goes through the columns in their order."""

    __slots__ = ("_columns", "_next", "_next_top")

    def __init__(self, columns: LogprobColumns) -> None:
        self._columns = columns
        self._next = self._next_top = 0

    def read(self, sequence: Sequence) -> TokenLogprobs | None:
        """The next token's; None for a sequence that asked for none, which has no values."""
        asked = sequence.request.sampling
        if not asked.num_logprobs:
            return None
        columns, top = self._columns, self._next_top
        self._next += 1
        self._next_top = top_end = top + asked.num_logprobs - 1
        return TokenLogprobs(
            columns.logprobs[self._next - 1],
            columns.top_ids[top:top_end],
            columns.top_logprobs[top:top_end],
        )
