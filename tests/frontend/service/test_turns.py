"""A stream of messages as turns: what each sample says, in order, whole and piece by piece."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Sequence

import pytest

from frontend.processing.tool_calls.events import Arguments, CallBegun, Text
from frontend.processing.tool_calls.format import PlainText
from frontend.processing.tool_calls.formats.hermes import HERMES
from frontend.service.turns import (
    Call,
    Ended,
    Finished,
    Reasoning,
    Started,
    TurnDelta,
    TurnEvent,
    WholeTurn,
    turn_events,
)
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.processing.tool_calls.reading import tools_of

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1.10}}</tool_call>'
READER = functools.partial(HERMES.reader, tools_of("f"))
EOS = pb.FINISH_REASON_EOS


async def stream(deltas: Sequence[pb.Delta]) -> AsyncGenerator[pb.GenerateResponse, None]:
    yield pb.GenerateResponse(started=pb.GenerateStarted(request_id="r"))
    for delta in deltas:
        yield pb.GenerateResponse(delta=delta)
    usage = pb.Usage(completion_tokens=7)
    yield pb.GenerateResponse(finished=pb.GenerateFinished(usage=usage))


async def events_of(*deltas: pb.Delta) -> list[TurnEvent]:
    return [event async for event in turn_events(stream(deltas), READER)]


async def turn_deltas(*deltas: pb.Delta) -> list[TurnDelta]:
    return [event for event in await events_of(*deltas) if isinstance(event, TurnDelta)]


async def test_a_turn_thinks_says_and_calls() -> None:
    first = pb.Delta(reasoning="hm", token_ids=[1], logprobs=[-0.5])
    last = pb.Delta(text=f"a{CALL}", finish_reason=EOS)
    started, thinking, saying, finished = await events_of(first, last)
    assert isinstance(started, Started)
    assert started.message.request_id == "r"
    assert thinking == TurnDelta(0, True, first, [Reasoning("hm")], None)
    told = [Text("a"), CallBegun(0, "f"), Arguments(0, '{"a": 1.10}')]
    assert saying == TurnDelta(0, False, last, told, Ended(EOS, 1))
    assert finished == Finished(pb.Usage(completion_tokens=7))


async def test_samples_have_readers_of_their_own() -> None:
    begun = [pb.Delta(index=index, text=CALL[:20]) for index in (0, 1)]
    ends = [pb.Delta(index=index, text=CALL[20:], finish_reason=EOS) for index in (1, 0)]
    found = await turn_deltas(*begun, *ends)
    assert [each.is_first for each in found] == [True, True, False, False]
    assert [each.index for each in found] == [0, 1, 1, 0]
    assert [list(each.events) for each in found[:2]] == [[], []]
    assert found[2].events == found[3].events == [CallBegun(0, "f"), Arguments(0, '{"a": 1.10}')]


async def test_what_is_held_back_is_told_at_the_end() -> None:
    stopped = pb.Delta(text="_call", finish_reason=pb.FINISH_REASON_STOP, stop_text="x")
    held, told = await turn_deltas(pb.Delta(text="1 <tool"), stopped)
    assert held.events == [Text("1 ")]
    assert told.events == [Text("<tool_call")]
    assert told.ended == Ended(pb.FINISH_REASON_STOP, 0, "x")


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_whole_turn_has_its_parts_in_order(size: int) -> None:
    said = f"a\n{CALL}\nbetween{CALL}"
    pieces = [said[place : place + size] for place in range(0, len(said), size)]
    deltas = [pb.Delta(reasoning="h"), pb.Delta(reasoning="m")]
    deltas += [pb.Delta(text=piece) for piece in pieces]
    turn = WholeTurn()
    for delta in await turn_deltas(*deltas, pb.Delta(finish_reason=EOS)):
        turn.add(delta)
    call = Call("f", "", '{"a": 1.10}')
    assert turn.parts == [Text("a\n"), call, Text("between"), call]
    assert (turn.reasoning, turn.content, turn.calls) == ("hm", "a\nbetween", [call, call])
    assert turn.ended == Ended(EOS, 2)


async def test_closing_it_closes_the_stream() -> None:
    inner = stream([pb.Delta(text="a"), pb.Delta(text="b")])
    events = turn_events(inner, PlainText)
    await anext(events)
    await events.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(inner)
