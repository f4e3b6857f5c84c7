"""A request and its output, as the service and the scheduler share them.

Owns a caller's parameters and what has been produced for them. Knows nothing of slots, blocks,
steps or the wire.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from frontend.errors import RequestError
from frontend.requests.output import FinishReason, Output, TokenLogprobs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn; ranges as in switchyard.v1.SamplingParams, checked by the service.

    Attributes:
        logit_bias: pairs of token id and what is added to its logit.
        allowed_token_ids: unless empty, all that may be drawn, ascending.
        banned_token_ids: what may never be drawn, ascending.
        num_logprobs: 0: none; k: log-probabilities of the drawn token and the k - 1 most likely.
        prompt_logprobs: report those of the prompt's tokens too.
        sample_index: which of a request's n samples this is.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    banned_token_ids: tuple[int, ...] = ()
    num_logprobs: int = 0
    prompt_logprobs: bool = False
    sample_index: int = 0

    @property
    def needs_history(self) -> bool:
        """Whether the workers must know the sequence's tokens, not only its newest."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.prompt_logprobs
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StopConditions:
    """When generation ends. ``eos_token_ids`` is empty for a request that ignores them."""

    max_new_tokens: int
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    eos_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False


class TextDecoder(Protocol):
    """Turns tokens into text as they come; one per request."""

    def push(self, token_id: int) -> str:
        """The text that is certain after this token; may be empty."""
        ...

    def flush(self) -> str:
        """What was held back, at the end of the sequence."""
        ...

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, once ``push`` has found one."""
        ...

    @property
    def num_thought_tokens(self) -> int:
        """Tokens of thoughts, whose text is told elsewhere."""
        ...


class TriggeredMask(NamedTuple):
    """A mask, as `Matcher.mask` gives one, that holds behind one token only; -1: behind any."""

    bits: bytes
    trigger: int


FREE = TriggeredMask(b"", -1)
"""Any token, behind any."""


class Matcher(Protocol):
    """What a sequence's output keeps to, by its tokens so far; one per sequence."""

    def mask(self) -> bytes:
        """Tokens that may come next: bit t % 32 of little-endian word t / 32 allows token t; no
        bytes: any token.
        """
        ...

    def mask_ahead(self, num_unknown: int) -> TriggeredMask | None:
        """The mask of a draw before which as many tokens (1 or more) are drawn and not known yet;
        None where it depends on them, and must wait.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Advance by a token that the last mask allowed, and that is no end token.

        Raises:
            RequestError: nothing can follow, or what can takes too long to find out.
        """
        ...

    def advance(self, token_ids: Sequence[int]) -> int:
        """Advance by tokens of an earlier stream while they are allowed; returns how many were.

        Raises:
            RequestError: as `accept` does, for what follows the last of them.
        """
        ...

    @property
    def is_stopped(self) -> bool:
        """Nothing may come but an end token: a grammar is complete."""
        ...


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One prompt and its continuation.

    Attributes:
        id: unique among live requests.
        prompt_ids: at least one token, each below the vocabulary's size.
        generated: output tokens that it begins with, for its caller has them already.
        decoder: turns tokens into text and finds stop strings; None for tokens only.
        matcher: what its output keeps to; None for any output.
        key: name of the caller's key; keys share the workers fairly.
        priority: lower is sooner.
        queue_deadline: time.monotonic() after which it is no longer worth admitting.
        arrived, admitted, first_token, finished: time.monotonic() of each event, 0.0 before it.
        cached_tokens: prompt tokens found in the prefix cache at the first admission.
        preemptions: times it gave up its blocks.
        replays: times it went on after the workers were lost.
        prompt_logprobs: of the prompt's tokens from the second on, as they arrive, if requested.
        num_generated: output tokens so far, ``generated`` among them.
        finish_reason: why it ended, once it ended well.
    """

    id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    stops: StopConditions
    decoder: TextDecoder | None
    output: Output
    matcher: Matcher | None = None
    generated: Sequence[int] = ()
    key: str = ""
    priority: int = 0
    queue_deadline: float = float("inf")
    arrived: float = 0.0
    admitted: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0
    cached_tokens: int = 0
    preemptions: int = 0
    replays: int = 0
    num_generated: int = 0
    finish_reason: FinishReason | None = None
    prompt_logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)

    @property
    def num_thought_tokens(self) -> int:
        """Of the output tokens, those of thoughts and their tags; 0 where no text is made."""
        return 0 if self.decoder is None else self.decoder.num_thought_tokens

    def finish(
        self,
        reason: FinishReason,
        now: float,
        *,
        text: str = "",
        stop_text: str | None = None,
        stop_token_id: int | None = None,
    ) -> None:
        """End the request well, with the text that was held back until now."""
        self.finished = now
        self.finish_reason = reason
        self.output.finish(reason, text=text, stop_text=stop_text, stop_token_id=stop_token_id)

    def fail(self, error: RequestError, now: float) -> None:
        """End the request with an error."""
        self.finished = now
        self.output.fail(error)
