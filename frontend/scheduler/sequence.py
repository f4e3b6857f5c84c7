"""A request on its way through the steps: its tokens, how far they are scheduled, when it ends.

Owns the request's side: taking drawn tokens in, text, stop conditions, the end. Knows no queue,
and of slots and blocks only which are its own.
"""

from __future__ import annotations

import enum
import logging

from frontend.errors import Code, RequestError
from frontend.requests.output import FinishReason, TokenLogprobs
from frontend.requests.request import Request
from frontend.scheduler.kv_blocks import extend_digests

logger = logging.getLogger(__name__)


class Phase(enum.Enum):
    """Where a sequence is."""

    WAITING = enum.auto()
    """In the queue."""
    RUNNING = enum.auto()
    """Holds a slot and blocks."""
    DRAINING = enum.auto()
    """Preempted; results of it are still in flight, then it waits again."""
    DONE = enum.auto()
    """Over; results still in flight are dropped."""


class Sequence:
    """One request's tokens and progress.

    Attributes:
        order: grows with submission; the queue's order.
        tokens: prompt and generated tokens that are known.
        num_prompt: how many of them are the prompt's.
        crashes: times the workers were lost over a step of it, since its last new token.
        max_tokens: length at which it ends, prompt included.
        num_scheduled: leading positions whose KV some step has been asked to write. Once the
            prompt is scheduled each step draws a token, so ``num_scheduled + 1`` is the length
            that ``tokens`` will have when all steps in flight have answered.
        prefill_end: tokens known at admission: where prefill ends and the first draw happens.
        last_step: step of its newest row.
        blocks: its KV blocks, in order of position.
        unsent_blocks: of these, what its replica's next row must say; for its first row.
        capacity: positions these blocks hold.
        digests: prefix digests of its leading full blocks, as far as they were needed.
        num_published: leading blocks that others may find, or that were found.
    """

    __slots__ = (
        "_decoder",
        "_end_ids",
        "_min_new_tokens",
        "blocks",
        "capacity",
        "crashes",
        "digests",
        "last_step",
        "max_tokens",
        "num_prompt",
        "num_published",
        "num_scheduled",
        "order",
        "phase",
        "prefill_end",
        "replica",
        "request",
        "slot",
        "tokens",
        "unsent_blocks",
    )

    def __init__(self, request: Request, order: int, max_model_len: int) -> None:
        stops = request.stops
        self.request = request
        self.order = order
        self.tokens = list(request.prompt_ids)
        self.max_tokens = min(len(self.tokens) + stops.max_new_tokens, max_model_len)
        self.phase = Phase.WAITING
        self.replica = -1
        self.slot = -1
        self.num_scheduled = 0
        self.prefill_end = 0
        self.last_step = 0
        self.blocks: list[int] = []
        self.unsent_blocks: list[int] = []
        self.capacity = 0
        self.digests: list[bytes] = []
        self.num_published = 0
        self.num_prompt = len(self.tokens)
        self.crashes = 0
        self._min_new_tokens = stops.min_new_tokens
        self._end_ids = stops.eos_token_ids | stops.stop_token_ids
        self._decoder = request.decoder

    def may_draw(self) -> bool:
        """Whether another draw may be scheduled while earlier ones are in flight.

        What may come next in a language depends on the last token, which must be known then.
        """
        if self.request.matcher is not None and self.num_scheduled == len(self.tokens):
            return False
        return self.num_scheduled + 1 < self.max_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the prompt must be computed again for its log-probabilities."""
        request = self.request
        return request.sampling.prompt_logprobs and not request.num_generated

    def leading_digests(self, num_blocks: int, block_size: int) -> list[bytes]:
        """Prefix digests of the first ``num_blocks`` blocks, whose tokens are all known."""
        extend_digests(self.digests, self.tokens, num_blocks, block_size)
        return self.digests[:num_blocks]

    def suppression(self) -> tuple[list[int], int]:
        """Tokens that may not be drawn yet, ascending, and the first position that may be any."""
        if self._min_new_tokens == 0:
            return [], 0
        return sorted(self._end_ids), self.num_prompt + self._min_new_tokens

    def take(self, token: int, now: float, logprobs: TokenLogprobs | None = None) -> bool:
        """Add one drawn token to the output; true when that ended the request.

        The token that ends a request counts as output. An end token of the model goes through the
        decoder, which leaves special tokens out unless they are asked for; a stop token's text
        is treated as a stop string's: left out unless ``include_stop``. A language that ends by
        itself, with nothing left that could come, stops the request without an end token.
        """
        request = self.request
        if token < 0:
            self._fail_numerically(now)
            return True
        self.tokens.append(token)
        self.crashes = 0
        request.num_generated = num_generated = request.num_generated + 1
        if num_generated == 1:
            request.first_token = now
        ends = token in self._end_ids and num_generated > self._min_new_tokens
        text = ""
        decoder = self._decoder
        stopped = False
        if decoder is not None and not (ends and self._is_silent(token)):
            text = decoder.push(token)
            stopped = decoder.matched is not None
        request.output.add(token, text, logprobs)
        matcher = request.matcher
        if matcher is not None and not (ends or stopped):
            try:
                matcher.accept(token)
            except RequestError as error:
                self.fail(error, now)
                return True
            stopped = matcher.is_stopped
        if ends or stopped or len(self.tokens) >= self.max_tokens:
            self._finish(token, ends, now)
            return True
        return False

    def restart(self) -> None:
        """Forget all that workers were asked for; the tokens stay."""
        self.phase = Phase.WAITING
        self.replica = self.slot = -1
        self.num_scheduled = self.prefill_end = self.last_step = 0
        self.blocks, self.unsent_blocks = [], []
        self.capacity = self.num_published = 0

    def abort(self, now: float) -> None:
        """End the request where it stands."""
        self.phase = Phase.DONE
        self.request.finished = now
        self.request.finish_reason = FinishReason.ABORTED
        self.request.output.finish(FinishReason.ABORTED, text=self._flush())

    def fail(self, error: RequestError, now: float) -> None:
        """End the request with an error."""
        self.phase = Phase.DONE
        self.request.finished = now
        self.request.output.fail(error)

    def _is_silent(self, token: int) -> bool:
        stops = self.request.stops
        return token not in stops.eos_token_ids and not stops.include_stop

    def _finish(self, token: int, ends: bool, now: float) -> None:
        """End the request with the first that applies: end token, stop token or string, length."""
        request = self.request
        stop_text = self._decoder.matched if self._decoder is not None else None
        stop_token_id = None
        matcher = request.matcher
        if ends and token in request.stops.eos_token_ids:
            reason = FinishReason.EOS
            stop_text = None
        elif ends:
            reason = FinishReason.STOP
            stop_token_id, stop_text = token, None
        elif stop_text is not None or (matcher is not None and matcher.is_stopped):
            reason = FinishReason.STOP
        else:
            reason = FinishReason.LENGTH
        self.phase = Phase.DONE
        request.finished = now
        request.finish_reason = reason
        request.output.finish(
            reason, text=self._flush(), stop_text=stop_text, stop_token_id=stop_token_id
        )

    def _flush(self) -> str:
        return self._decoder.flush() if self._decoder is not None else ""

    def _fail_numerically(self, now: float) -> None:
        request_id = self.request.id
        logger.error("request %s: the logits were not finite", request_id)
        error = RequestError(
            Code.INTERNAL, f"internal error in request {request_id}", reason="NUMERICAL_FAULT"
        )
        self.fail(error, now)
