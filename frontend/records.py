"""The caller, and the record of a finished request, for logs, metrics and traces.

Defines both and the protocols of their observers. Holds no text of a prompt or an answer.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent a request.

    Attributes:
        key: the name of their key; empty without keys.
        peer: their address, as the transport says it.
        traceparent: the W3C header; empty when none was sent.
    """

    key: str = ""
    peer: str = ""
    traceparent: str = ""


UNKNOWN_CALLER = Caller()
"""No key name, no address, no trace."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One finished request; times are time.monotonic(), 0.0 for an event that did not happen.

    Attributes:
        method: what was called, such as Generate.
        code: OK, a name of `frontend.errors.Code`, or CANCELLED when the caller left.
        reason: of the error; empty without one.
        finish_reasons: one a sequence that ended well, such as EOS.
        completion_tokens: of all its sequences.
        resumed_tokens: of these, what came with the request, from an earlier stream that was lost.
    """

    request_id: str
    method: str
    caller: Caller
    code: str
    reason: str = ""
    finish_reasons: tuple[str, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    resumed_tokens: int = 0
    arrived: float = 0.0
    admitted: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0
    preemptions: int = 0
    replays: int = 0


class Observer(Protocol):
    """Called for each finished request; returns quickly and does not raise."""

    def request_ended(self, record: RequestRecord) -> None:
        """Called once when a request ends, whether the service refused it or not."""
        ...


class StepObserver(Protocol):
    """Called inside the engine's loop; takes microseconds and does not raise."""

    def step_completed(
        self,
        num_decodes: int,
        seconds_since_previous: float,
        num_tokens: int,
        num_generated: int,
    ) -> None:
        """One step's results are in.

        Args:
            num_decodes: sequences that went on by a token.
            seconds_since_previous: since the previous step's results; 0.0 when the workers had
                nothing to do in between, and then no latency is counted.
            num_tokens: of all its rows, decodes and prompts.
            num_generated: tokens that were added to outputs.
        """
        ...
