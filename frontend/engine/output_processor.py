"""What drawn tokens mean for their requests: text, log-probabilities, and the end.

Owns log-probabilities and the grammar's progress, and hands them to the request's `Output` with the
text and the end that `requests/progress.py` finds. Knows nothing of slots, blocks or queues: the
scheduler learns from it only which sequences ended.
"""

from __future__ import annotations

import logging

from frontend.errors import Code, RequestError
from frontend.requests.output import FinishReason, TokenLogprobs
from frontend.requests.progress import finish, follow, held_text
from frontend.requests.request import Request
from frontend.scheduler.sequence import Phase, Sequence
from frontend.scheduler.step import Drawn, ReplicaBatch, Step, StepLogprobs
from switchyard.worker.link import NOT_FINITE

logger = logging.getLogger(__name__)


class OutputProcessor:
    """Adds the tokens of each step to their requests' outputs.

    Attributes:
        generated_tokens: tokens that were added to outputs, since the start.
    """

    __slots__ = ("generated_tokens",)

    def __init__(self) -> None:
        self.generated_tokens = 0

    def process(self, step: Step, drawn: list[Drawn], now: float) -> list[Sequence]:
        """Add each drawn token to its request; drop those of requests that are over.

        Args:
            step: the oldest outstanding one, which the scheduler completes next.
            drawn: for each replica what its draws gave.
            now: time.monotonic().

        Returns:
            Sequences whose request this ended.
        """
        ended: list[Sequence] = []
        for batch, columns in zip(step.batches, drawn, strict=True):
            if columns.prompt_logprobs.logprobs:
                _take_prompt_logprobs(batch, columns.prompt_logprobs)
            self._take_tokens(batch, columns, ended, now)
        return ended

    def abort(self, request: Request, now: float) -> None:
        """End a request with what it has."""
        request.finish(FinishReason.ABORTED, now, text=held_text(request))

    def _take_tokens(
        self, batch: ReplicaBatch, drawn: Drawn, ended: list[Sequence], now: float
    ) -> None:
        tokens, done = drawn.tokens, Phase.DONE
        assert len(tokens) == batch.num_draws, f"{len(tokens)} of {batch.num_draws} tokens"
        reader = LogprobReader(drawn.logprobs) if drawn.logprobs.logprobs else None
        num_taken = 0
        for sequence, token in zip(_drawing(batch), tokens, strict=True):
            request = sequence.request
            logprobs = reader.read(request) if reader is not None else None
            if sequence.phase is done:
                continue
            if token == NOT_FINITE:
                _fail_numerically(request, now)
                ended.append(sequence)
                continue
            num_taken += 1
            if take_token(sequence, token, logprobs, now):
                ended.append(sequence)
        self.generated_tokens += num_taken


def _drawing(batch: ReplicaBatch) -> list[Sequence]:
    """Sequences of the rows that draw, in the order of the rows."""
    if not batch.draws:
        return batch.sequences
    rows = zip(batch.sequences[batch.num_decodes :], batch.draws, strict=True)
    return batch.sequences[: batch.num_decodes] + [seq for seq, draws in rows if draws]


def take_token(sequence: Sequence, token: int, logprobs: TokenLogprobs | None, now: float) -> bool:
    """Add one drawn token to its request's output; true when that ended the request.

    The token that ends a request counts as output. When the grammar is complete and no token can
    follow, the request ends without an end token.
    """
    request = sequence.request
    if not request.first_token:
        request.first_token = now
    text, is_over = follow(request, token)
    request.output.add(token, text, logprobs)
    matcher = request.matcher
    if matcher is not None and not is_over:
        try:
            matcher.accept(token)
        except RequestError as error:
            request.fail(error, now)
            return True
        is_over = matcher.is_stopped
    if is_over or sequence.num_prompt + request.num_generated >= sequence.max_tokens:
        finish(request, token, now)
        return True
    return False


def _fail_numerically(request: Request, now: float) -> None:
    logger.error("request %s: the logits were not finite", request.id)
    error = RequestError(
        Code.INTERNAL, f"internal error in request {request.id}", reason="NUMERICAL_FAULT"
    )
    request.fail(error, now)


def _take_prompt_logprobs(batch: ReplicaBatch, columns: StepLogprobs) -> None:
    """Append this step's prompt log-probabilities to the requests that want them."""
    reader = LogprobReader(columns)
    for row in range(batch.num_decodes, len(batch.sequences)):
        sequence = batch.sequences[row]
        if not sequence.wants_prompt_logprobs:
            continue
        request = sequence.request
        start, num_tokens = batch.positions[row], batch.num_tokens[row - batch.num_decodes]
        last = min(start + num_tokens, sequence.num_prompt - 1)
        read = [reader.read(request) for _ in range(start, last)]
        request.prompt_logprobs += [each for each in read if each is not None]


class LogprobReader:
    """Reads log-probabilities token by token from the flat columns."""

    __slots__ = ("_columns", "_next", "_next_top")

    def __init__(self, columns: StepLogprobs) -> None:
        self._columns = columns
        self._next = self._next_top = 0

    def read(self, request: Request) -> TokenLogprobs | None:
        """The next token's; None for a request that wants none, which has no values."""
        num_logprobs = request.sampling.num_logprobs
        if not num_logprobs:
            return None
        columns, top = self._columns, self._next_top
        self._next += 1
        self._next_top = top_end = top + num_logprobs - 1
        return TokenLogprobs(
            columns.logprobs[self._next - 1],
            columns.top_ids[top:top_end],
            columns.top_logprobs[top:top_end],
        )
