"""What is asked for after a loss, what of the answer is new, and when nobody waits any longer."""

from __future__ import annotations

import contextlib

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from switchyard import resumption
from switchyard.errors import ServerError
from switchyard.requests import generate_request
from switchyard.resumption import CONNECT_SECONDS, MAX_LOSSES, Losses, Patience, Resumption
from switchyard.v1 import inference_pb2 as pb

RESUME_SECONDS = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(resumption, "time", fake)
    return fake


def failure(code: str, reason: str = "", retry_after: float | None = None) -> ServerError:
    status = status_pb2.Status()
    details: list[object] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason))
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return ServerError(grpc.StatusCode[code], "…", status.SerializeToString())


LOSS = failure("UNAVAILABLE")


def losses(timeout: float | None = None, *, has_answered: bool = True) -> Losses:
    patience = Patience(RESUME_SECONDS)
    patience.has_answered = has_answered
    return Losses(patience, timeout)


def waited(clock: Clock, each: Losses, error: ServerError) -> float:
    """Seconds for which a call that always fails so is tried again."""
    began = clock.now
    with contextlib.suppress(ServerError):
        while True:
            clock.now += each.pause_after(error)
    return clock.now - began


@pytest.mark.parametrize(
    "error",
    [
        failure("INVALID_ARGUMENT", "INVALID_FIELD"),
        failure("RESOURCE_EXHAUSTED", "QUEUE_FULL", 1.0),
        failure("ALREADY_EXISTS", "DUPLICATE_REQUEST_ID"),
        failure("INTERNAL", "POISON"),
        failure("DEADLINE_EXCEEDED"),
        failure("CANCELLED"),
        failure("UNAUTHENTICATED", "NO_API_KEY"),
    ],
    ids=str,
)
def test_what_is_no_loss_ends_a_call_at_once(error: ServerError) -> None:
    with pytest.raises(ServerError) as caught:
        losses().pause_after(error)
    assert caught.value is error


@pytest.mark.parametrize("reason", ["STARTING", "DRAINING"])
def test_a_server_that_begins_or_ends_is_waited_for_shortly(reason: str, clock: Clock) -> None:
    """By a new call; by one that was lost as long as any server."""
    refused = failure("UNAVAILABLE", reason, 1.0)
    assert waited(clock, losses(), refused) == CONNECT_SECONDS
    lost = losses()
    lost.pause_after(LOSS)
    assert waited(clock, lost, refused) == RESUME_SECONDS


def test_a_server_that_never_spoke_is_waited_for_shortly(clock: Clock) -> None:
    each = losses(has_answered=False)
    each.pause_after(LOSS)
    assert each.seconds == CONNECT_SECONDS
    clock.now += CONNECT_SECONDS - 1
    assert each.seconds == 1.0
    clock.now += 1
    with pytest.raises(ServerError):
        each.pause_after(LOSS)


def test_one_that_has_is_waited_for_as_long_as_the_caller_says(clock: Clock) -> None:
    each = losses()
    each.pause_after(LOSS)
    assert each.seconds == RESUME_SECONDS
    each.answered()
    clock.now += 10
    each.pause_after(LOSS)
    assert each.seconds == RESUME_SECONDS
    with pytest.raises(ServerError):
        Losses(Patience(0.0), None).pause_after(LOSS)


def test_the_deadline_ends_the_wait(clock: Clock) -> None:
    each = losses(timeout=10.0)
    clock.now += 4
    each.pause_after(LOSS)
    assert (each.timeout, each.seconds) == (6.0, 6.0)
    clock.now += 7
    assert (each.timeout, each.seconds) == (0.0, 0.0)
    with pytest.raises(ServerError) as caught:
        each.pause_after(LOSS)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_losses_without_output_in_between_end_a_call() -> None:
    """It may be what its server dies of."""
    each = losses()
    for _ in range(MAX_LOSSES - 1):
        each.pause_after(LOSS)
        each.answered()
        each.pause_after(failure("UNAVAILABLE", "STARTING", 1.0))  # nothing was lost with that
    with pytest.raises(ServerError):
        each.pause_after(LOSS)
    each = losses()
    for _ in range(10 * MAX_LOSSES):
        each.pause_after(LOSS)
        each.answered()
        each.went_on()


def test_after_a_loss_a_refusal_for_the_moment_is_waited_out() -> None:
    each = losses()
    first = each.pause_after(LOSS)
    assert 0.1 <= first <= 0.2
    assert 3.0 <= each.pause_after(failure("RESOURCE_EXHAUSTED", "QUEUE_FULL", 3.0)) <= 4.5
    assert each.pause_after(failure("ALREADY_EXISTS", "DUPLICATE_REQUEST_ID")) <= 0.8
    with pytest.raises(ServerError):
        each.pause_after(failure("INVALID_ARGUMENT", "INVALID_FIELD"))
    each.went_on()
    with pytest.raises(ServerError):
        each.pause_after(failure("RESOURCE_EXHAUSTED", "QUEUE_FULL", 3.0))


def begun(**options: object) -> Resumption:
    request = generate_request("abc", **options)
    each = Resumption(request, losses())
    assert each.next_request() is request
    started = pb.GenerateStarted(request_id="r", model="m", seed=7, prompt_tokens=3)
    assert each.take(pb.GenerateResponse(started=started)) is None
    return each


def new(each: Resumption, **delta: object) -> pb.Delta | None:
    return each.take(pb.GenerateResponse(delta=pb.Delta(**delta)))


def resume(each: Resumption, num_tokens: int, prompt_tokens: int = 3) -> None:
    each.next_request()
    started = pb.GenerateStarted(generated_tokens=num_tokens, prompt_tokens=prompt_tokens)
    each.take(pb.GenerateResponse(started=started))


def test_the_rest_is_asked_for_under_the_same_name_with_the_same_seed() -> None:
    each = begun(n=3, max_queue_time=2.0, temperature=0.5, priority=3)
    new(each, index=2, token_ids=[4, 5], text="xy")
    new(each, index=0, token_ids=[6], text="z")
    new(each, index=2, token_ids=[8], text="w")
    asked = each.next_request()
    assert asked == pb.GenerateRequest(
        model="m",
        request_id="r",
        prompt={"text": "abc"},
        sampling={"temperature": 0.5, "seed": 7},
        n=3,
        priority=3,
        generated=[
            {"index": 0, "token_ids": [6]},
            {"index": 1},
            {"index": 2, "token_ids": [4, 5, 8]},
        ],
    )


def test_text_that_came_before_its_tokens_comes_once() -> None:
    """A message holds so many tokens; the text of more tokens may be in it."""
    each = begun()
    new(each, token_ids=[1, 2], text="abcdef")
    resume(each, 2)
    assert new(each, token_ids=[3], text="abcd") == pb.Delta(token_ids=[3])
    assert new(each, text="ef") is None
    assert new(each, token_ids=[4], text="gh") == pb.Delta(token_ids=[4], text="gh")
    assert each.resumes == 1


def test_a_sample_that_has_ended_ends_once() -> None:
    each = begun(n=2)
    end = pb.FINISH_REASON_STOP
    assert new(each, index=1, token_ids=[1], text="a", finish_reason=end) is not None
    resume(each, 1)
    assert new(each, index=1, text="a", finish_reason=end) is None
    assert new(each, index=0, text="a", finish_reason=end) is not None


@pytest.mark.parametrize(("num_tokens", "prompt_tokens"), [(0, 3), (2, 4)])
def test_a_server_that_begins_anew_is_noticed(num_tokens: int, prompt_tokens: int) -> None:
    each = begun()
    new(each, token_ids=[1, 2], text="ab")
    with pytest.raises(ServerError, match=f"took {num_tokens} of 2 tokens") as caught:
        resume(each, num_tokens, prompt_tokens)
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
