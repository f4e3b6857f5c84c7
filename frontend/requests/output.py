"""A request's output on its way from the engine to the reader of its stream, and how often that may
write: one message costs the same whatever is in it.

Owns the pending delta, and the interval between messages, which grows with the number of open
streams. Knows nothing of where tokens come from, or of the wire.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import time

from frontend.errors import RequestError

SECONDS_A_MESSAGE = 55e-6
"""CPU time that one message may cost; grpcio alone takes 30 to 50 µs of it."""
NUM_PHASES = 4


class FinishReason(enum.Enum):
    """Why a sequence ended; values are those of switchyard.v1.FinishReason."""

    EOS = 1
    STOP = 2
    LENGTH = 3
    ABORTED = 4


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log-probability, and the most likely tokens at its place, best first."""

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


@dataclasses.dataclass(slots=True)
class Delta:
    """New output since the last delta that was taken; ``logprobs`` one per token, or none. Its
    ``reasoning`` comes before its text."""

    reasoning: str = ""
    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_text: str | None = None
    stop_token_id: int | None = None


class Output:
    """One request's pending delta: the engine adds, one reader takes, neither waits for the other.

    A slow reader costs memory only for the tokens it has not read, at most max_new_tokens.

    Attributes:
        min_tokens: tokens that wake the reader; fewer do so only at the end.
        pacer: decides when the reader may be woken again; None: at once.
    """

    __slots__ = (
        "_admitted",
        "_begun",
        "_delta",
        "_earlier",
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
        self._earlier: list[Delta] = []  # before it: their text comes before its reasoning
        self._ready = asyncio.Event()
        self._admitted = asyncio.Event()
        self._begun = asyncio.Event()
        self._error: RequestError | None = None

    def admit(self) -> None:
        """The request got its slot: its first prefill chunk is in a step."""
        self._admitted.set()

    def begin_with(self, text: str) -> None:
        """Let the first delta begin with the text of tokens that are not in it; before all else."""
        self._delta.text = text

    def add_reasoning(self, text: str) -> None:
        """Add text of the thoughts, whose token is added next or was the last."""
        if self._delta.text:
            self._earlier.append(self._delta)
            self._delta = Delta()
        self._delta.reasoning += text

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

    def release(self) -> None:
        """Wake the reader of a stream that the pacer held back."""
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
        """Wait for new output and take all of it, or all before thoughts that came behind text.

        Raises:
            RequestError: the request failed.
        """
        await self._ready.wait()
        if self._error is not None:
            raise self._error
        if self._earlier:
            return self._earlier.pop(0)
        delta, self._delta = self._delta, Delta()
        if self.pacer is not None:
            self._last_take = self.pacer.stamp(is_first=self._last_take == 0.0)
        if delta.finish_reason is None:
            self._ready.clear()
        return delta


class Pacer:
    """Paces all streams of one event loop.

    Attributes:
        interval: seconds that must lie between two messages of a stream; 0.0 with few streams.
    """

    __slots__ = ("_held", "_num_streams", "_phase", "_timer", "interval")

    def __init__(self) -> None:
        self.interval = 0.0
        self._phase = 0
        self._num_streams = 0
        self._held: list[Output] = []
        self._timer: asyncio.TimerHandle | None = None

    def enter(self) -> None:
        """A stream was opened."""
        self._count(1)

    def leave(self) -> None:
        """A stream was closed."""
        self._count(-1)

    def may_write(self, held: Output, last_write: float) -> bool:
        """Whether a stream may write now; if not, ``release`` is called once it may."""
        interval = self.interval
        if interval == 0.0 or time.monotonic() - last_write >= interval:
            return True
        self._held.append(held)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(interval, self._release_held)
        return False

    def stamp(self, *, is_first: bool) -> float:
        """The time to count a write that happens now from. For a stream's first write it is a later
        one, so that streams that began together do not go on together."""
        if not is_first:
            return time.monotonic()
        self._phase = (self._phase + 1) % NUM_PHASES
        return time.monotonic() + self.interval * self._phase / NUM_PHASES

    def _count(self, change: int) -> None:
        self._num_streams += change
        interval = self._num_streams * SECONDS_A_MESSAGE
        # Below the time of the quickest steps nothing is gained.
        self.interval = interval if interval > 0.002 else 0.0

    def _release_held(self) -> None:
        held, self._held, self._timer = self._held, [], None
        for each in held:
            each.release()
