"""Several samples of one prompt, and log-probabilities, as the stream carries them."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest

from frontend.errors import Code, RequestError
from frontend.records import RequestRecord
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL, FakeEngine, answer_text, backend
from tests.waiting import turns, until

PROMPT = "abcdefgh"  # two blocks


class Records(list[RequestRecord]):
    def request_ended(self, record: RequestRecord) -> None:
        self.append(record)


def opened(engine: FakeEngine, records: Records | None = None, **changes: object) -> Service:
    service = Service(model=MODEL, version="1", observers=[records] if records is not None else [])
    service.open(backend(engine, **changes))
    return service


def generate_request(
    n: int, num_tokens: int = 4, prompt: str = PROMPT, **output: object
) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id="r",
        prompt={"text": prompt},
        stop_conditions={"max_new_tokens": num_tokens},
        output=output,
        n=n,
    )


async def collect(stream) -> list[pb.GenerateResponse]:
    return [event async for event in stream]


def texts(events: list[pb.GenerateResponse]) -> dict[int, str]:
    by_index: dict[int, str] = defaultdict(str)
    for event in events:
        if event.HasField("delta"):
            by_index[event.delta.index] += event.delta.text
    return dict(by_index)


def expected(n: int, num_tokens: int) -> dict[int, str]:
    return {k: answer_text(PROMPT, num_tokens + k)[k:] for k in range(n)}


@pytest.mark.parametrize("prefix_cache", [True, False])
async def test_a_stream_of_samples(prefix_cache: bool) -> None:
    engine, records = FakeEngine(), Records()
    service = opened(engine, records, prefix_cache=prefix_cache)
    events = await collect(service.generate(generate_request(3)))
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert set(kinds[1:-1]) == {"delta"}
    assert texts(events) == expected(3, 4)
    lasts = [event.delta.index for event in events if event.delta.finish_reason]
    assert sorted(lasts) == [0, 1, 2]
    assert events[-1].finished.usage == pb.Usage(prompt_tokens=8, completion_tokens=12)
    [record] = records
    assert (record.code, record.completion_tokens) == ("OK", 12)
    assert record.finish_reasons == ("LENGTH",) * 3


async def test_samples_differ_in_index_and_id_alone() -> None:
    engine = FakeEngine()
    request = generate_request(3, logprobs=True, prompt_logprobs=True)
    request.sampling.seed = 5
    await collect(opened(engine).generate(request))
    assert list(engine.requests) == ["r", "r·1", "r·2"]
    first, *others = (each.sampling for each in engine.requests.values())
    assert [other.sample_index for other in others] == [1, 2]
    assert {other.seed for other in others} == {first.seed} == {5}
    assert first.prompt_logprobs
    assert not any(other.prompt_logprobs for other in others)
    decoders = [each.decoder for each in engine.requests.values()]
    assert len(set(map(id, decoders))) == 3


async def test_others_wait_for_the_first_ones_prefill_only_where_they_share_it() -> None:
    for changes, prompt, alone in (
        ({}, PROMPT, True),
        ({}, "abcd", False),  # no full block before the last token
        ({"prefix_cache": False}, PROMPT, False),
    ):
        engine = FakeEngine()
        stream = opened(engine, **changes).generate(generate_request(3, prompt=prompt))
        assert len(texts(await collect(stream))) == 3
        assert engine.first_alone == alone


async def test_complete_has_an_output_a_sample() -> None:
    answer = await opened(FakeEngine()).complete(
        pb.CompleteRequest(request=generate_request(3, 6, echo=True))
    )
    assert [output.index for output in answer.outputs] == [0, 1, 2]
    for output in answer.outputs:
        assert output.text == PROMPT + expected(3, 6)[output.index]
        assert len(output.token_ids) == 6
        assert output.finish_reason == pb.FINISH_REASON_LENGTH


async def test_echo_comes_once_for_each() -> None:
    events = await collect(opened(FakeEngine()).generate(generate_request(2, echo=True)))
    assert texts(events) == {k: PROMPT + text for k, text in expected(2, 4).items()}


async def test_min_tokens_per_message_holds_for_each() -> None:
    request = generate_request(2, 20, min_tokens_per_message=6)
    sizes = defaultdict(list)
    for event in await collect(opened(FakeEngine()).generate(request)):
        if event.HasField("delta"):
            sizes[event.delta.index].append(len(event.delta.token_ids))
    for each in sizes.values():
        assert sum(each) == 20
        assert all(size >= 6 for size in each[1:-1])


@pytest.mark.parametrize("hold_at", [0, 2])
async def test_abort_ends_all_samples(hold_at: int) -> None:
    engine, records = FakeEngine(), Records()
    engine.go.clear()
    engine.hold_at = hold_at
    service = opened(engine, records)
    stream = service.generate(generate_request(3))
    await anext(stream)
    task = asyncio.create_task(collect(stream))
    await until(
        lambda: (
            len(engine.requests) == 3
            and all(each.num_generated == hold_at for each in engine.requests.values())
        )
    )
    answer = service.abort(pb.AbortRequest(request_ids=["r", "r·1"]))
    assert answer.aborted_request_ids == ["r"]
    events = await task
    reasons = {
        event.delta.index: event.delta.finish_reason
        for event in events
        if event.delta.finish_reason
    }
    assert reasons == dict.fromkeys(range(3), pb.FINISH_REASON_ABORTED)
    assert events[-1].finished.usage.completion_tokens == 3 * hold_at
    await asyncio.wait_for(service.idle(), 1.0)
    assert records[0].code == "OK"


async def test_leaving_ends_all_samples() -> None:
    engine, records = FakeEngine(), Records()
    engine.go.clear()
    engine.hold_at = 2
    service = opened(engine, records)
    stream = service.generate(generate_request(3))
    async for event in stream:
        if event.delta.index == 2:
            break
    await stream.aclose()
    assert not engine.running
    assert sorted(engine.aborted) == ["r", "r·1", "r·2"]
    await asyncio.wait_for(service.idle(), 1.0)
    assert [record.code for record in records] == ["CANCELLED"]
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_an_error_of_one_sample_ends_all() -> None:
    engine = FakeEngine()
    engine.go.clear()
    engine.hold_at = 2
    stream = opened(engine).generate(generate_request(3))
    await anext(stream)
    task = asyncio.create_task(collect(stream))
    await until(lambda: "r·1" in engine.running)
    await turns()
    engine.running.pop("r·1").cancel()
    engine.requests["r·1"].output.fail(RequestError(Code.INTERNAL, "x", reason="NUMERICAL_FAULT"))
    with pytest.raises(RequestError, match="x"):
        await task
    assert not engine.running


# ---- log-probabilities ----


async def test_log_probabilities_come_with_their_tokens() -> None:
    request = generate_request(2, 5, logprobs=True, top_logprobs=2)
    for event in await collect(opened(FakeEngine()).generate(request)):
        delta = event.delta
        assert list(delta.logprobs) == [-token for token in delta.token_ids]
        assert [list(top.token_ids) for top in delta.top_logprobs] == [
            [token + 1, token + 2] for token in delta.token_ids
        ]
        for top in delta.top_logprobs:
            assert list(top.logprobs) == [-token for token in top.token_ids]


async def test_without_alternatives_there_are_none() -> None:
    answer = await opened(FakeEngine()).complete(
        pb.CompleteRequest(request=generate_request(1, 5, logprobs=True, prompt_logprobs=True))
    )
    assert len(answer.outputs[0].logprobs) == 5
    assert not answer.outputs[0].top_logprobs
    assert len(answer.started.prompt_logprobs) == 7
    assert not answer.started.prompt_top_logprobs


async def test_the_prompts_come_first_and_alone_when_asked_for_alone() -> None:
    engine = FakeEngine()
    engine.go.clear()
    request = generate_request(2, 5, prompt_logprobs=True, top_logprobs=1)
    stream = opened(engine).generate(request)
    waiting = asyncio.create_task(anext(stream))
    await until(lambda: engine.running)
    await turns()
    assert not waiting.done()  # the prompt is not computed yet
    engine.go.set()
    started = (await waiting).started
    assert list(started.prompt_logprobs) == [-ord(letter) for letter in PROMPT[1:]]
    assert [list(top.token_ids) for top in started.prompt_top_logprobs] == [
        [ord(letter) + 1] for letter in PROMPT[1:]
    ]
    events = await collect(stream)
    assert texts(events) == expected(2, 5)
    assert not any(event.delta.logprobs or event.delta.top_logprobs for event in events)
