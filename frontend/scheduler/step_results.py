"""What one replica drew, given to the sequences of its slice.

Owns the pairing of rows with tokens and log-probabilities, and what becomes reusable of the prefix
cache. Knows no queue: who ended is the scheduler's to withdraw.
"""

from __future__ import annotations

from frontend.scheduler.logprobs import LogprobReader
from frontend.scheduler.replica import Replica
from frontend.scheduler.sequence import Phase, Sequence
from frontend.scheduler.step import Drawn, LogprobColumns, Slice

Ended = list[tuple[Sequence, Phase]]
"""Sequences that a token ended, and the phase each was in."""


def take_results(replica: Replica, part: Slice, drawn: Drawn, now: float) -> tuple[int, Ended]:
    """Give every row that drew its token.

    Returns:
        How many tokens requests were given, and what ended.
    """
    tokens = drawn.tokens
    assert len(tokens) == part.num_draws, f"{len(tokens)} of {part.num_draws} tokens"
    logprobs = LogprobReader(drawn.logprobs) if drawn.logprobs.logprobs else None
    ended: Ended = []
    num_taken = _take_decodes(replica, part, tokens, logprobs, ended, now)
    if drawn.prompt_logprobs.logprobs:
        _take_prompt_logprobs(part, drawn.prompt_logprobs)
    num_taken += _take_prefills(replica, part, tokens, logprobs, ended, now)
    return num_taken, ended


def _take_decodes(
    replica: Replica,
    part: Slice,
    tokens: list[int],
    logprobs: LogprobReader | None,
    ended: Ended,
    now: float,
) -> int:
    block_size = replica.pool.block_size
    running, done = Phase.RUNNING, Phase.DONE
    num_taken = 0
    # Decodes draw first, so the shorter list of rows ends the loop.
    for sequence, token in zip(part.sequences[: part.num_decodes], tokens, strict=False):
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
    part: Slice,
    tokens: list[int],
    logprobs: LogprobReader | None,
    ended: Ended,
    now: float,
) -> int:
    drawn = iter(tokens[part.num_decodes :])
    num_taken = 0
    for row in range(part.num_decodes, len(part.sequences)):
        sequence = part.sequences[row]
        phase = sequence.phase
        index = row - part.num_decodes
        draws = part.draws[index]
        token = next(drawn) if draws else None
        beside = logprobs.read(sequence) if logprobs is not None and draws else None
        if phase is Phase.RUNNING and (token is None or token >= 0):
            replica.publish(sequence, part.positions[row] + part.num_tokens[index])
        if token is not None and phase is not Phase.DONE:
            num_taken += token >= 0
            if sequence.take(token, now, beside):
                ended.append((sequence, phase))
    return num_taken


def _take_prompt_logprobs(part: Slice, columns: LogprobColumns) -> None:
    """Give each prompt that asked the log-probabilities of what this step computed of it."""
    reader = LogprobReader(columns)
    for row in range(part.num_decodes, len(part.sequences)):
        sequence = part.sequences[row]
        if not sequence.wants_prompt_logprobs:
            continue
        start, num_tokens = part.positions[row], part.num_tokens[row - part.num_decodes]
        last = min(start + num_tokens, sequence.num_prompt - 1)
        read = [reader.read(sequence) for _ in range(start, last)]
        sequence.request.prompt_logprobs += [each for each in read if each is not None]
