"""How often streams may write: at once when they are few, in turns when they are many."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

import frontend.requests.output
from frontend.requests.output import NUM_PHASES, SECONDS_A_MESSAGE, FinishReason, Output, Pacer
from tests.frontend.builders import take_now
from tests.waiting import turns


def crowd(pacer: Pacer, num_streams: int) -> None:
    for _ in range(num_streams):
        pacer.enter()


async def test_few_streams_get_every_token_at_once() -> None:
    pacer = Pacer()
    crowd(pacer, 20)
    output = Output(pacer=pacer)
    for token in range(5):
        output.add(token, "x")
        assert take_now(output).token_ids == [token]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the pacer takes for the time."""
    made = SimpleNamespace(now=100.0)
    held = SimpleNamespace(monotonic=lambda: made.now)
    monkeypatch.setattr(frontend.requests.output, "time", held)
    return made


async def test_a_crowd_gathers_tokens_and_loses_none(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[float] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda seconds, _: timers.append(seconds))
    pacer = Pacer()
    crowd(pacer, 1000)
    assert pacer.interval == 1000 * SECONDS_A_MESSAGE
    output = Output(pacer=pacer)
    messages: list[list[int]] = []

    async def read() -> None:
        while True:
            delta = await output.take()
            messages.append(delta.token_ids)
            if delta.finish_reason is not None:
                return

    reader = asyncio.create_task(read())
    for token in range(60):
        output.add(token, "x")
        await turns(3)
        clock.now += 0.004
    output.finish(FinishReason.LENGTH)
    await reader
    assert [token for message in messages for token in message] == list(range(60))
    assert messages[0] == [0], "the first token waits for nobody"
    assert 3 <= len(messages) <= 60 * 0.004 / pacer.interval + 3
    assert set(timers) == {pacer.interval}, "what is held back has a timer"


async def test_what_is_held_back_leaves_even_if_nothing_follows() -> None:
    pacer = Pacer()
    crowd(pacer, 500)
    output = Output(pacer=pacer)
    output.add(1, "x")
    await output.take()
    output.add(2, "x")
    assert not output._ready.is_set(), "it is held back"
    async with asyncio.timeout(30):
        assert (await output.take()).token_ids == [2]


async def test_streams_that_began_together_go_on_in_turns(clock: SimpleNamespace) -> None:
    pacer = Pacer()
    crowd(pacer, 1000)
    outputs = [Output(pacer=pacer) for _ in range(40)]
    for output in outputs:
        output.add(0, "x")
        await output.take()
    written = []
    for _ in range(NUM_PHASES):
        clock.now += pacer.interval / NUM_PHASES * 1.01
        for output in outputs:
            output.add(1, "x")
        written.append(sum(output._ready.is_set() for output in outputs))
    assert written == [0, 0, 0, len(outputs) // NUM_PHASES]
    clock.now += pacer.interval
    for output in outputs:
        output.add(2, "x")
    assert all(output._ready.is_set() for output in outputs)


async def test_the_pace_follows_the_crowd() -> None:
    pacer = Pacer()
    crowd(pacer, 300)
    assert pacer.interval > 0
    for _ in range(300):
        pacer.leave()
    assert pacer.interval == 0.0
