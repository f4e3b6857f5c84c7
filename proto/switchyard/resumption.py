"""One request over as many streams as it takes: what has come, what to ask for next, when to stop.

A stream whose server, or the way to it, is lost goes on in another one, which is asked for the rest
(`GenerateRequest.generated`). Owns what counts as a loss, and how long and how often another try is
made. Opens no connection and does not wait.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import defaultdict

import grpc

from switchyard.errors import ServerError
from switchyard.v1 import inference_pb2 as pb

RESUME_SECONDS = 60.0
"""How long a lost server is waited for by default: a killed frontend is back in 2 s, a whole server
in as long as its weights take to load."""

CONNECT_SECONDS = 5.0
"""The same where nothing was lost: the server has never said a word, and perhaps there is none, or
it refuses a new call because it begins or ends."""

MAX_LOSSES = 4
"""Losses without new output in between that end a request: it may be what its server dies of."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0

Request = pb.GenerateRequest | pb.ChatRequest
Event = pb.GenerateResponse | pb.ChatResponse


@dataclasses.dataclass(slots=True)
class Patience:
    """How long the calls of one client wait for their server.

    Attributes:
        resume_seconds: after a loss; 0: not at all.
        has_answered: the server has said something since the client was made.
    """

    resume_seconds: float
    has_answered: bool = False


class Losses:
    """The failures of one call since it last went on, and whether it is tried again.

    Args:
        timeout: the call's deadline, in seconds from now; None: it has none.
    """

    def __init__(self, patience: Patience, timeout: float | None) -> None:
        self._patience = patience
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._failed_at: float | None = None
        self._num_tries = self._num_losses = 0

    @property
    def timeout(self) -> float | None:
        """What is left until the deadline, in seconds."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def seconds(self) -> float:
        """How long the server is still waited for."""
        limit, now = self._patience.resume_seconds, time.monotonic()
        if not (self._num_losses and self._patience.has_answered):
            limit = min(limit, CONNECT_SECONDS)
        left = limit if self._failed_at is None else self._failed_at + limit - now
        return max(0.0, left if self.timeout is None else min(left, self.timeout))

    def pause_after(self, error: ServerError) -> float:
        """Seconds until the next try, somewhat at random, so that not all clients come at once.

        A loss is what is UNAVAILABLE. After one, whoever says when to come again is obeyed, and an
        id is waited for that a server still holds which has not noticed.

        Raises:
            ServerError: the error, where no other try is made; DEADLINE_EXCEEDED past the deadline.
        """
        self._patience.has_answered = self._patience.has_answered or bool(error.reason)
        is_lost = error.code is grpc.StatusCode.UNAVAILABLE
        if not is_lost and not (self._num_losses and _passes(error)):
            raise error from None
        if self._failed_at is None:
            self._failed_at = time.monotonic()
        self._num_tries += 1
        self._num_losses += is_lost and error.retry_after is None
        if self.timeout == 0.0:
            why = f"the deadline passed while there was no server: {error.message}"
            raise ServerError(grpc.StatusCode.DEADLINE_EXCEEDED, why) from None
        if not self.seconds or self._num_losses == MAX_LOSSES:
            raise error from None
        if error.retry_after is not None:
            return min(error.retry_after * random.uniform(1.0, 1.5), self.seconds)
        pause = min(_FIRST_PAUSE * 2.0 ** (self._num_tries - 1), _LONGEST_PAUSE)
        return min(pause * random.uniform(0.5, 1.0), self.seconds)

    def answered(self) -> None:
        """The server has taken the call, or says something else."""
        self._patience.has_answered = True
        self._failed_at, self._num_tries = None, 0

    def went_on(self) -> None:
        """There is new output."""
        self._num_losses = 0


def _passes(error: ServerError) -> bool:
    """Whether a refusal is one for the moment."""
    return error.retry_after is not None or error.code is grpc.StatusCode.ALREADY_EXISTS


@dataclasses.dataclass(slots=True)
class _Sample:
    """What has come of one sample.

    Attributes:
        num_chars: length of its thoughts and of its text, which comes after them.
        num_repeated: characters with which the present stream repeats these.
    """

    token_ids: list[int] = dataclasses.field(default_factory=list)
    num_chars: int = 0
    num_repeated: int = 0
    is_over: bool = False

    def without_repeated(self, text: str) -> str:
        """What is new of the next text of the present stream."""
        num_repeated = min(self.num_repeated, len(text))
        self.num_repeated -= num_repeated
        return text[num_repeated:]


class Resumption:
    """What a request has given, so that another stream can go on from there.

    Attributes:
        started: the first message of the first stream, once it has come.
        finished: the last message, once it has.
        resumes: streams but the first that the server took.

    Args:
        request: as its caller made it.
    """

    def __init__(self, request: Request, losses: Losses) -> None:
        self.losses = losses
        self.started = pb.GenerateStarted()
        self.finished = pb.GenerateFinished()
        self.resumes = 0
        self._request = request
        self._samples: defaultdict[int, _Sample] = defaultdict(_Sample)
        self._has_begun = False

    def next_request(self) -> Request:
        """What the next stream is asked for: the rest, once one has begun."""
        if not self._has_begun:
            return self._request
        message = type(self._request)()
        message.CopyFrom(self._request)
        request, started = _generation(message), self.started
        request.model, request.request_id = started.model, started.request_id
        request.sampling.seed = started.seed
        request.ClearField("max_queue_time")  # it has been admitted
        del request.generated[:]
        for index in range(max(1, request.n)):
            sample = self._samples[index]
            request.generated.add(index=index, token_ids=sample.token_ids)
            sample.num_repeated = sample.num_chars
        return message

    def take(self, event: Event) -> pb.Delta | None:
        """What a message adds to the output; None when it adds nothing.

        Raises:
            ServerError: FAILED_PRECONDITION; the server does not go on from what has come.
        """
        message = event.response if isinstance(event, pb.ChatResponse) else event
        self.losses.answered()
        if message.HasField("delta"):
            return self._new(message.delta)
        if message.HasField("finished"):
            self.finished = message.finished
        elif self._has_begun:
            self._check(message.started)
            self.resumes += 1
        else:
            self.started, self._has_begun = message.started, True
        return None

    def _check(self, resumed: pb.GenerateStarted) -> None:
        """A server of an earlier release begins anew; with other files it reads other prompts."""
        num_tokens = sum(len(sample.token_ids) for sample in self._samples.values())
        num_prompt, prompt_tokens = self.started.prompt_tokens, resumed.prompt_tokens
        if (resumed.generated_tokens, prompt_tokens) != (num_tokens, num_prompt):
            raise ServerError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "the stream was lost, and the server that is there now cannot go on with it: it "
                f"took {resumed.generated_tokens} of {num_tokens} tokens, and its prompt has "
                f"{prompt_tokens}, not {num_prompt}",
            )

    def _new(self, delta: pb.Delta) -> pb.Delta | None:
        sample = self._samples[delta.index]
        if sample.is_over:
            return None
        if sample.num_repeated:
            delta.reasoning = sample.without_repeated(delta.reasoning)
            delta.text = sample.without_repeated(delta.text)
        if not (delta.reasoning or delta.text or delta.token_ids or delta.finish_reason):
            return None
        sample.num_chars += len(delta.reasoning) + len(delta.text)
        sample.token_ids += delta.token_ids
        sample.is_over = bool(delta.finish_reason)
        self.losses.went_on()
        return delta


def _generation(request: Request) -> pb.GenerateRequest:
    """The request itself, or the one that a chat holds."""
    return request.request if isinstance(request, pb.ChatRequest) else request
