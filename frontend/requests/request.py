"""A request and its output, as the service and the scheduler share them.

Owns what a caller asked for and what has been produced for it. Knows nothing of slots, blocks,
steps or the wire.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from typing import Protocol

from frontend.errors import RequestError
from frontend.requests.pacing import Pacer


class FinishReason(enum.Enum):
    """Why a sequence ended; values are those of switchyard.v1.FinishReason."""

    EOS = 1
    STOP = 2
    LENGTH = 3
    ABORTED = 4


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


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log-probability, and the most likely tokens at its place, best first."""

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


@dataclasses.dataclass(slots=True)
class Delta:
    """New output since the last delta that was taken; ``logprobs`` one a token, or none."""

    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_text: str | None = None
    stop_token_id: int | None = None


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


class Matcher(Protocol):
    """The language that a sequence keeps to; one per sequence, which it follows token by token."""

    def mask(self) -> bytes:
        """Tokens that may come next: bit t % 32 of little-endian word t / 32 allows token t."""
        ...

    def accept(self, token_id: int) -> None:
        """Go on behind a token that the last mask allowed, and that is no end token.

        Raises:
            RequestError: nothing can follow, or what can takes too long to find out.
        """
        ...

    @property
    def is_stopped(self) -> bool:
        """The language ended by itself: nothing but an end token may come next."""
        ...


class Output:
    """One request's pending delta: the engine adds, one reader takes, nobody waits for the other.

    A slow reader costs memory only for the tokens it has not read, at most max_new_tokens.

    Attributes:
        min_tokens: the reader is not woken for fewer, but at the end.
        pacer: says when it may be woken again; None: at once.
    """

    __slots__ = (
        "_admitted",
        "_begun",
        "_delta",
        "_error",
        "_last_take",
        "_ready",
        "min_tokens",
        "pacer",
    )

    def __init__(self, min_tokens: int = 1, pacer: Pacer | None = None) -> None:
        self.min_tokens = min_tokens
        self.pacer = pacer
        self._last_take = 0.0
        self._delta = Delta()
        self._ready = asyncio.Event()
        self._admitted = asyncio.Event()
        self._begun = asyncio.Event()
        self._error: RequestError | None = None

    def admit(self) -> None:
        """The request got its slot: its first prefill chunk is in a step."""
        self._admitted.set()

    def add(self, token_id: int, text: str, logprobs: TokenLogprobs | None = None) -> None:
        """Add one token and the text it completed."""
        delta = self._delta
        self._begun.set()
        delta.token_ids.append(token_id)
        if logprobs is not None:
            delta.logprobs.append(logprobs)
        if text:
            delta.text += text
        if len(delta.token_ids) >= self.min_tokens and (
            self.pacer is None or self.pacer.may_write(self, self._last_take)
        ):
            self._ready.set()

    def let_go(self) -> None:
        """What was held back for other streams' sake may leave."""
        if len(self._delta.token_ids) >= self.min_tokens:
            self._ready.set()

    def finish(
        self,
        reason: FinishReason,
        *,
        text: str = "",
        stop_text: str | None = None,
        stop_token_id: int | None = None,
    ) -> None:
        """End the output; nothing is added afterwards."""
        delta = self._delta
        delta.text += text
        delta.finish_reason = reason
        delta.stop_text = stop_text
        delta.stop_token_id = stop_token_id
        self._admitted.set()
        self._begun.set()
        self._ready.set()

    def fail(self, error: RequestError) -> None:
        """End the output with an error; what is pending is dropped."""
        self._error = error
        self._admitted.set()
        self._begun.set()
        self._ready.set()

    async def admitted(self) -> None:
        """Wait for the request's admission.

        Raises:
            RequestError: it failed before.
        """
        await self._admitted.wait()
        if self._error is not None:
            raise self._error

    async def begun(self) -> None:
        """Wait for the first token, or the end where none comes.

        Raises:
            RequestError: the request failed.
        """
        await self._begun.wait()
        if self._error is not None:
            raise self._error

    async def take(self) -> Delta:
        """Wait for new output and take all of it.

        Raises:
            RequestError: the request failed.
        """
        await self._ready.wait()
        if self._error is not None:
            raise self._error
        delta, self._delta = self._delta, Delta()
        if self.pacer is not None:
            self._last_take = self.pacer.stamp(is_first=self._last_take == 0.0)
        if delta.finish_reason is None:
            self._ready.clear()
        return delta


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One prompt and its continuation.

    Attributes:
        id: unique among live requests.
        prompt_ids: at least one token, each below the vocabulary's size.
        decoder: turns tokens into text and finds stop strings; None for tokens only.
        matcher: what its output must look like; None for anything.
        key: whose request it is; keys share the workers fairly.
        priority: lower is sooner.
        queue_deadline: time.monotonic() after which it is no longer worth admitting.
        is_let_in: a sample whose first one was admitted: no queue is too full for it.
        arrived, admitted, first_token, finished: time.monotonic() of each event, 0.0 before it.
        cached_tokens: prompt tokens found in the prefix cache at the first admission.
        preemptions: times it gave up its blocks.
        replays: times it went on after the workers were lost.
        prompt_logprobs: of the prompt's tokens from the second on, as they arrive, if asked for.
        num_generated: output tokens so far.
        finish_reason: why it ended, once it ended well.
    """

    id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    stops: StopConditions
    decoder: TextDecoder | None
    output: Output
    matcher: Matcher | None = None
    key: str = ""
    priority: int = 0
    queue_deadline: float = float("inf")
    is_let_in: bool = False
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
