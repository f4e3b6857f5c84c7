"""The service without a transport: every row of the status table, and what a stream holds."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from frontend.errors import Code, RequestError
from frontend.model_folder import SamplingDefaults
from frontend.processing import preprocess
from frontend.records import UNKNOWN_CALLER
from frontend.requests.output import Delta, FinishReason, TokenLogprobs
from frontend.requests.request import Request
from frontend.service import responses
from frontend.service import service as service_module
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import (
    MAX_CONTEXT,
    MODEL,
    STEP_RATES,
    VOCAB_SIZE,
    FakeEngine,
    FakeTokenizer,
    answer_text,
    backend,
    group,
    queue_full,
)

Change = Callable[[pb.GenerateRequest], object]


def opened(engine: FakeEngine, **changes: object) -> Service:
    service = Service(model=MODEL, version="1.2.3")
    service.open(backend(engine, **changes))
    return service


def generate_request(prompt: str = "abc", num_tokens: int = 4) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        prompt={"text": prompt}, stop_conditions={"max_new_tokens": num_tokens}
    )


async def collect(stream) -> list[pb.GenerateResponse]:
    return [event async for event in stream]


async def refusal(stream) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await collect(stream)
    assert "\n" not in caught.value.message
    return caught.value


def text_of(events: list[pb.GenerateResponse]) -> str:
    return "".join(event.delta.text for event in events)


BAD_FIELDS: list[tuple[str, Change]] = [
    ("prompt", lambda r: r.ClearField("prompt")),
    ("prompt.text", lambda r: setattr(r.prompt, "text", "")),
    ("prompt.tokens.ids", lambda r: r.prompt.tokens.SetInParent()),
    ("prompt.tokens.ids[1]", lambda r: r.prompt.tokens.ids.extend([1, VOCAB_SIZE])),
    ("prompt", lambda r: r.prompt.tokens.ids.extend([1] * MAX_CONTEXT)),
    ("prompt", lambda r: setattr(r.prompt, "text", "a" * MAX_CONTEXT)),
    ("request_id", lambda r: setattr(r, "request_id", "é")),
    ("request_id", lambda r: setattr(r, "request_id", "a\n")),
    ("request_id", lambda r: setattr(r, "request_id", "a" * 129)),
    ("sampling.temperature", lambda r: setattr(r.sampling, "temperature", -0.1)),
    ("sampling.temperature", lambda r: setattr(r.sampling, "temperature", math.nan)),
    ("sampling.temperature", lambda r: setattr(r.sampling, "temperature", math.inf)),
    ("sampling.top_p", lambda r: setattr(r.sampling, "top_p", 0.0)),
    ("sampling.top_p", lambda r: setattr(r.sampling, "top_p", 1.1)),
    ("sampling.top_p", lambda r: setattr(r.sampling, "top_p", math.nan)),
    ("sampling.min_p", lambda r: setattr(r.sampling, "min_p", -0.5)),
    ("sampling.min_p", lambda r: setattr(r.sampling, "min_p", math.inf)),
    ("n", lambda r: setattr(r, "n", 0)),
    ("n", lambda r: setattr(r, "n", 65)),
    ("stop_conditions.max_new_tokens", lambda r: setattr(r.stop_conditions, "max_new_tokens", 0)),
    ("stop_conditions.min_new_tokens", lambda r: setattr(r.stop_conditions, "min_new_tokens", 5)),
    ("stop_conditions.stop", lambda r: r.stop_conditions.stop.extend(["x"] * 17)),
    ("stop_conditions.stop[1]", lambda r: r.stop_conditions.stop.extend(["x", ""])),
    ("stop_conditions.stop[0]", lambda r: r.stop_conditions.stop.append("x" * 257)),
    ("stop_conditions.stop_token_ids[0]", lambda r: r.stop_conditions.stop_token_ids.append(256)),
    (
        "stop_conditions.stop_token_ids",
        lambda r: r.stop_conditions.stop_token_ids.extend([1] * 999),
    ),
    ("max_queue_time", lambda r: r.max_queue_time.FromSeconds(-1)),
    ("max_queue_time", lambda r: r.max_queue_time.MergeFrom(Duration(seconds=1, nanos=-5))),
    ("max_queue_time", lambda r: r.max_queue_time.SetInParent()),
    ("max_queue_time", lambda r: setattr(r.max_queue_time, "nanos", 2**31 - 1)),
]


@pytest.mark.parametrize(("field", "change"), BAD_FIELDS)
async def test_a_bad_field_is_named(field: str, change: Change) -> None:
    engine = FakeEngine()
    request = generate_request()
    change(request)
    error = await refusal(opened(engine).generate(request))
    assert (error.code, error.field) == (Code.INVALID_ARGUMENT, field)
    assert not engine.requests

    nested = await _refused_complete(opened(engine), request)
    assert (nested.code, nested.field) == (Code.INVALID_ARGUMENT, field)


async def _refused_complete(service: Service, request: pb.GenerateRequest) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await service.complete(pb.CompleteRequest(request=request))
    return caught.value


NEUTRAL: list[Change] = [
    lambda r: setattr(r.sampling, "repetition_penalty", 1.0),
    lambda r: setattr(r.sampling, "presence_penalty", 0.0),
    lambda r: setattr(r.sampling, "frequency_penalty", 0.0),
    lambda r: setattr(r, "n", 1),
    lambda r: setattr(r, "priority", -(2**31)),
    lambda r: setattr(r, "model", MODEL),
    lambda r: setattr(r, "request_id", "~" * 128),
    lambda r: setattr(r.sampling, "seed", 2**64 - 1),
    lambda r: setattr(r.sampling, "top_k", 2**32 - 1),
    lambda r: r.stop_conditions.stop.extend(["x" * 256] * 16),
    lambda r: r.max_queue_time.FromMilliseconds(1),
    lambda r: r.max_queue_time.FromSeconds(315_576_000_000),
    lambda r: setattr(r.output, "min_tokens_per_message", 2**32 - 1),
]


@pytest.mark.parametrize("change", NEUTRAL)
async def test_what_is_allowed_is_answered(change: Change) -> None:
    request = generate_request("abc", 4)
    change(request)
    assert text_of(await collect(opened(FakeEngine()).generate(request))) == "defg"


async def test_the_context_is_a_limit_with_both_numbers() -> None:
    service = opened(FakeEngine())
    fits = await collect(service.generate(generate_request("abc", MAX_CONTEXT - 3)))
    assert fits[-1].finished.usage.completion_tokens == MAX_CONTEXT - 3
    error = await refusal(service.generate(generate_request("abc", MAX_CONTEXT - 2)))
    assert error.code is Code.INVALID_ARGUMENT
    assert f"{MAX_CONTEXT + 1} tokens" in error.message
    assert f"context of {MAX_CONTEXT}" in error.message


async def test_unset_max_new_tokens_is_what_is_left() -> None:
    request = pb.GenerateRequest(prompt={"text": "abc"})
    events = await collect(opened(FakeEngine()).generate(request))
    assert events[-1].finished.usage.completion_tokens == MAX_CONTEXT - 3
    small = opened(FakeEngine(), info=group(num_blocks=4))  # 16 tokens
    events = await collect(small.generate(request))
    assert events[-1].finished.usage.completion_tokens == 16 + 1 - 3


async def test_a_stream_is_started_deltas_finished() -> None:
    request = generate_request("abc", 6)
    request.request_id, request.sampling.seed = "me", 7
    events = await collect(opened(FakeEngine()).generate(request))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"delta"}
    started, finished = events[0].started, events[-1].finished
    assert (started.request_id, started.seed, started.prompt_tokens) == ("me", 7, 3)
    assert started.model == MODEL
    assert text_of(events) == answer_text("abc", 6)
    ids = [token for event in events for token in event.delta.token_ids]
    assert bytes(ids).decode() == answer_text("abc", 6)
    reasons = [event.delta.finish_reason for event in events[1:-1]]
    assert reasons[-1] == pb.FINISH_REASON_LENGTH
    assert not any(reasons[:-1])
    assert finished.usage == pb.Usage(prompt_tokens=3, completion_tokens=6)
    assert finished.timings.decode.ToNanoseconds() >= 0


async def test_seeds_are_picked_and_reported() -> None:
    engine = FakeEngine()
    service = opened(engine)
    seeds = [
        (await collect(service.generate(generate_request())))[0].started.seed for _ in range(3)
    ]
    assert len(set(seeds)) == 3
    assert [request.sampling.seed for request in engine.requests.values()] == seeds


async def test_defaults_come_from_the_model_then_the_api() -> None:
    engine = FakeEngine()
    defaults = SamplingDefaults(temperature=0.6, top_k=20)
    request = generate_request()
    request.request_id = "unset"
    await collect(opened(engine, defaults=defaults).generate(request))
    sampling = engine.requests["unset"].sampling
    assert (sampling.temperature, sampling.top_k) == (0.6, 20)
    assert (sampling.top_p, sampling.min_p) == (1.0, 0.0)
    request.request_id, request.sampling.temperature, request.sampling.top_k = "zero", 0.0, 0
    await collect(opened(engine, defaults=defaults).generate(request))
    sampling = engine.requests["zero"].sampling
    assert (sampling.temperature, sampling.top_k) == (0.0, 0)


async def test_extremes_are_made_safe_for_the_workers() -> None:
    engine = FakeEngine()
    request = generate_request()
    request.request_id = "r"
    request.sampling.temperature, request.sampling.top_k = 1e-30, 2**32 - 1
    await collect(opened(engine).generate(request))
    assert engine.requests["r"].sampling.temperature == 0.0
    assert engine.requests["r"].sampling.top_k == 0


async def test_stops_reach_the_engine() -> None:
    engine = FakeEngine()
    request = generate_request()
    request.request_id = "a"
    request.stop_conditions.stop_token_ids.append(9)
    await collect(opened(engine).generate(request))
    assert engine.requests["a"].stops.eos_token_ids == {0}
    assert engine.requests["a"].stops.stop_token_ids == {9}
    request.request_id, request.stop_conditions.ignore_eos = "b", True
    await collect(opened(engine).generate(request))
    assert engine.requests["b"].stops.eos_token_ids == frozenset()


@pytest.mark.parametrize(
    ("own", "ends"),
    [(5, {0, 5}), (0, {0}), (None, {0}), (VOCAB_SIZE, {0}), (VOCAB_SIZE - 1, {0, VOCAB_SIZE - 1})],
)
async def test_the_tokenizer_s_end_token_ends_too(own: int | None, ends: set[int]) -> None:
    """Unless the model does not have it: a worker would be asked to suppress it."""
    tokenizer, engine = FakeTokenizer(), FakeEngine()
    tokenizer.eos_token_id = own
    service = opened(engine, tokenizer=tokenizer)
    request = generate_request()
    request.request_id = "a"
    request.stop_conditions.min_new_tokens = 1
    await collect(service.generate(request))
    assert engine.requests["a"].stops.eos_token_ids == ends
    assert service.model_info().eos_token_ids == sorted(ends)


async def test_output_options() -> None:
    service = opened(FakeEngine())
    request = generate_request("abc", 6)
    request.output.skip_detokenize = True
    events = await collect(service.generate(request))
    assert text_of(events) == ""
    assert sum(len(event.delta.token_ids) for event in events) == 6

    request = generate_request("abc", 6)
    request.output.echo = True
    assert text_of(await collect(service.generate(request))) == "abc" + answer_text("abc", 6)
    whole = await service.complete(pb.CompleteRequest(request=request))
    assert whole.outputs[0].text == "abc" + answer_text("abc", 6)
    assert len(whole.outputs[0].token_ids) == 6

    request.output.skip_detokenize = True
    assert (await refusal(service.generate(request))).field == "output.skip_detokenize"


async def test_what_does_not_stream_comes_at_the_end() -> None:
    request = generate_request(num_tokens=20)
    request.output.min_tokens_per_message = 6
    events = await collect(opened(FakeEngine()).generate(request, streams=False))
    assert [len(event.delta.token_ids) for event in events[1:-1]] == [20]


async def test_an_answer_that_fits_no_message_is_refused_before_its_prompt_is_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeTokenizer, "encode", lambda *_: pytest.fail("encoded"))
    service = opened(FakeEngine(), info=group(max_model_len=1 << 30, num_blocks=1 << 30))
    message = pb.CompleteRequest(request=generate_request(num_tokens=1 << 24))
    with pytest.raises(RequestError, match="one message holds"):
        await service.complete(message)


async def test_min_tokens_per_message_spares_the_first() -> None:
    request = generate_request("abc", 20)
    request.output.min_tokens_per_message = 6
    events = await collect(opened(FakeEngine()).generate(request))
    sizes = [len(event.delta.token_ids) for event in events[1:-1]]
    assert sizes[0] == 1
    assert all(size >= 6 for size in sizes[1:-1])
    assert sum(sizes) == 20


async def test_complete_is_generate_gathered() -> None:
    answer = await opened(FakeEngine()).complete(
        pb.CompleteRequest(request=generate_request("abc", 30))
    )
    [output] = answer.outputs
    assert output.text == answer_text("abc", 30)
    assert output.finish_reason == pb.FINISH_REASON_LENGTH
    assert answer.finished.usage.completion_tokens == len(output.token_ids) == 30
    assert answer.started.prompt_tokens == 3


async def test_a_prompt_that_leaves_no_room_in_the_context() -> None:
    service = opened(FakeEngine(), info=group(max_model_len=8))
    request = generate_request("abcdefgh")
    request.stop_conditions.ClearField("max_new_tokens")
    error = await refusal(service.generate(request))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG")
    assert (error.field, "send at most 7" in error.message) == ("prompt", True)
    request.prompt.text = "abcdefg"
    events = await collect(service.generate(request))
    assert events[-1].finished.usage.completion_tokens == 1


async def test_unknown_model() -> None:
    request = generate_request()
    request.model = "other"
    error = await refusal(opened(FakeEngine()).generate(request))
    assert (error.code, error.reason) == (Code.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_a_live_id_is_taken_and_free_again_afterwards() -> None:
    engine = FakeEngine()
    engine.go.clear()
    service = opened(engine)
    request = generate_request()
    request.request_id = "twice"
    first = service.generate(request)
    assert (await anext(first)).started.request_id == "twice"
    error = await refusal(service.generate(request))
    assert (error.code, error.reason) == (Code.ALREADY_EXISTS, "DUPLICATE_REQUEST_ID")
    assert not engine.aborted
    engine.go.set()
    async for event in first:
        if event.HasField("finished"):  # who has read the end may use the id again
            assert text_of(await collect(service.generate(request))) == "defg"
    assert not engine.aborted


async def test_closing_the_stream_aborts_the_request() -> None:
    engine = FakeEngine()
    engine.go.clear()
    service = opened(engine)
    request = generate_request()
    request.request_id = "gone"
    stream = service.generate(request)
    await anext(stream)
    await stream.aclose()
    assert engine.aborted == ["gone"]
    await asyncio.wait_for(service.idle(), 1.0)


async def test_cancelling_while_waiting_aborts_the_request() -> None:
    engine = FakeEngine()
    engine.go.clear()
    service = opened(engine)
    task = asyncio.create_task(collect(service.generate(generate_request())))
    while not engine.running:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(engine.aborted) == 1


async def test_abort_ends_streams_well() -> None:
    engine = FakeEngine()
    engine.go.clear()
    service = opened(engine)
    request = generate_request()
    request.request_id = "a"
    stream = service.generate(request)
    await anext(stream)
    assert service.abort(pb.AbortRequest(request_ids=["a", "b"])).aborted_request_ids == ["a"]
    events = await collect(stream)
    assert events[-2].delta.finish_reason == pb.FINISH_REASON_ABORTED
    assert events[-1].HasField("finished")


async def test_a_key_ends_its_own_requests_alone() -> None:
    engine = FakeEngine()
    engine.go.clear()
    service = opened(engine)
    request = generate_request()
    request.request_id = "a"
    alice, bob = (dataclasses.replace(UNKNOWN_CALLER, key=name) for name in ("alice", "bob"))
    stream = service.generate(request, alice)
    await anext(stream)
    asked_for = pb.AbortRequest(request_ids=["a"])
    for stranger in (bob, UNKNOWN_CALLER):
        assert not service.abort(asked_for, stranger).aborted_request_ids
    assert service.abort(asked_for, alice).aborted_request_ids == ["a"]
    await collect(stream)


async def test_each_key_has_ids_of_its_own() -> None:
    engine = FakeEngine()
    engine.go.clear()
    service = opened(engine)
    request = generate_request()
    request.request_id = "same"
    alice, bob = (dataclasses.replace(UNKNOWN_CALLER, key=name) for name in ("alice", "bob"))
    streams = [service.generate(request, caller) for caller in (alice, bob, UNKNOWN_CALLER)]
    for stream in streams:
        assert (await anext(stream)).started.request_id == "same"
    assert len(engine.running) == 3
    assert (await refusal(service.generate(request, bob))).reason == "DUPLICATE_REQUEST_ID"
    assert service.abort(pb.AbortRequest(request_ids=["same"]), bob).aborted_request_ids == ["same"]
    assert len(engine.aborted) == 1
    engine.go.set()
    ends = [(await collect(stream))[-2].delta.finish_reason for stream in streams]
    length, aborted = pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_ABORTED
    assert ends == [length, aborted, length]
    await service.idle()


@pytest.mark.parametrize("num_thoughts", [0, 1, 524_288, 700_000])
@pytest.mark.parametrize(
    ("top_logprobs", "sizes"), [(0, [1024] * 4 + [904]), (20, [48] * 104 + [8])]
)
def test_what_a_slow_reader_left_comes_in_messages_that_fit(
    top_logprobs: int, sizes: list[int], num_thoughts: int
) -> None:
    output = pb.OutputOptions(logprobs=True, top_logprobs=top_logprobs)
    beside = TokenLogprobs(-1.0, [200_000] * top_logprobs, [-2.0] * top_logprobs)
    count = 5000
    text = "".join(chr(0x1F600 + number % 50) * 200 for number in range(count))
    thoughts, text = text[:num_thoughts], text[num_thoughts:]
    new = Delta(
        reasoning=thoughts,
        text=text,
        token_ids=list(range(count)),
        logprobs=[beside] * count,
        finish_reason=FinishReason.STOP,
        stop_text="!",
    )
    deltas = [event.delta for event in responses.deltas(3, new, output)]
    assert [len(delta.token_ids) for delta in deltas] == sizes
    assert max(delta.ByteSize() for delta in deltas) < 4 << 20
    assert [token for delta in deltas for token in delta.token_ids] == list(range(count))
    assert "".join(delta.text for delta in deltas) == text
    assert "".join(delta.reasoning for delta in deltas) == thoughts
    assert not any(delta.text for delta in deltas[: num_thoughts // 524_288])
    assert [len(each.top_logprobs) for each in deltas] == (sizes if top_logprobs else [0] * 5)
    assert {delta.index for delta in deltas} == {3}
    ends = [(delta.finish_reason, delta.stop_text) for delta in deltas]
    assert ends == [(0, "")] * (len(sizes) - 1) + [(pb.FINISH_REASON_STOP, "!")]


async def test_an_answer_in_one_message_has_to_fit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    service = opened(FakeEngine(), info=group(max_model_len=1 << 20, num_blocks=1 << 20))
    request = generate_request(num_tokens=2000)
    request.n = 64
    request.output.logprobs, request.output.top_logprobs = True, 20
    with pytest.raises(RequestError, match="is 2000 for 64 samples") as caught:
        await service.complete(pb.CompleteRequest(request=request))
    assert caught.value.field == "stop_conditions.max_new_tokens"
    monkeypatch.setattr(service_module, "MAX_MESSAGE_BYTES", 200)
    assert (await service.complete(pb.CompleteRequest(request=generate_request()))).outputs
    with pytest.raises(RequestError, match="stream it") as caught:
        await service.complete(pb.CompleteRequest(request=generate_request(num_tokens=90)))
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "ANSWER_TOO_LARGE")
    assert len(await collect(service.generate(generate_request(num_tokens=90)))) > 2
    await asyncio.wait_for(service.idle(), 1.0)


async def test_abort_ends_a_request_that_is_still_being_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine()
    service = opened(engine)
    gate = asyncio.Event()
    make_requests = preprocess.make_requests

    async def slowly(*arguments: Any, **options: Any) -> list[Request]:
        await gate.wait()
        return await make_requests(*arguments, **options)

    monkeypatch.setattr(preprocess, "make_requests", slowly)
    request = generate_request()
    request.request_id = "a"
    task = asyncio.create_task(collect(service.generate(request)))
    await asyncio.sleep(0)
    assert service.abort(pb.AbortRequest(request_ids=["a"])).aborted_request_ids == ["a"]
    gate.set()
    events = await task
    assert events[-2].delta.finish_reason == pb.FINISH_REASON_ABORTED
    assert events[-1].HasField("finished")
    assert not engine.requests


async def test_a_chat_has_a_bound_on_its_turns() -> None:
    turns = [pb.ChatMessage(role=pb.ROLE_USER)] * 1025
    error = await refusal(opened(FakeEngine()).chat(pb.ChatRequest(messages=turns)))
    assert (error.code, error.field) == (Code.INVALID_ARGUMENT, "messages")


async def test_chat_renders_the_template() -> None:
    request = pb.ChatRequest(
        messages=[{"role": pb.ROLE_USER, "content": "hi"}],
        request=pb.GenerateRequest(stop_conditions={"max_new_tokens": 2}),
        template_kwargs_json='{"enable_thinking": false}',
    )
    events = await collect(opened(FakeEngine()).chat(request))
    assert text_of(events) == "jk"
    assert events[0].started.prompt_tokens == len("u:hi")


BAD_CHATS: list[tuple[str, Callable[[pb.ChatRequest], object]]] = [
    ("messages", lambda r: r.ClearField("messages")),
    ("messages[0].role", lambda r: setattr(r.messages[0], "role", 0)),
    ("messages[0].role", lambda r: setattr(r.messages[0], "role", 99)),
    ("messages", lambda r: setattr(r.messages[0], "role", pb.ROLE_ASSISTANT)),
    ("prompt", lambda r: setattr(r.request.prompt, "text", "x")),
    ("sampling.top_p", lambda r: setattr(r.request.sampling, "top_p", 2.0)),
    ("template_kwargs_json", lambda r: setattr(r, "template_kwargs_json", "{")),
    ("template_kwargs_json", lambda r: setattr(r, "template_kwargs_json", "[1]")),
    ("template_kwargs_json", lambda r: setattr(r, "template_kwargs_json", "[" * 16_000)),
    ("template_kwargs_json", lambda r: setattr(r, "template_kwargs_json", " " * 16_385)),
    (
        "template_kwargs_json",
        lambda r: setattr(r, "template_kwargs_json", '{"chat_template": "{{ 1 }}"}'),
    ),
]


@pytest.mark.parametrize(("field", "change"), BAD_CHATS)
async def test_a_bad_chat_is_named(field: str, change: Callable[[pb.ChatRequest], object]) -> None:
    request = pb.ChatRequest(messages=[{"role": pb.ROLE_USER, "content": "hi"}])
    change(request)
    error = await refusal(opened(FakeEngine()).chat(request))
    assert (error.code, error.field) == (Code.INVALID_ARGUMENT, field)


async def test_what_the_model_folder_lacks_is_a_failed_precondition() -> None:
    bare = opened(FakeEngine(), tokenizer=None)
    chat = pb.ChatRequest(messages=[{"role": pb.ROLE_USER, "content": "hi"}])
    assert (await refusal(bare.chat(chat))).reason == "NO_CHAT_TEMPLATE"
    assert (await refusal(bare.generate(generate_request()))).reason == "NO_TOKENIZER"
    with pytest.raises(RequestError, match="no tokenizer"):
        await bare.tokenize(pb.TokenizeRequest(text="x"))
    tokens = pb.GenerateRequest(prompt={"tokens": {"ids": [97]}})
    assert len(await collect(bare.generate(tokens))) > 2
    tokens.stop_conditions.stop.append("x")
    error = await refusal(bare.generate(tokens))
    assert error.code is Code.FAILED_PRECONDITION

    tokenizer = FakeTokenizer()
    tokenizer.has_chat_template = False
    error = await refusal(opened(FakeEngine(), tokenizer=tokenizer).chat(chat))
    assert error.code is Code.FAILED_PRECONDITION


async def test_a_full_queue_passes_through() -> None:
    engine = FakeEngine()
    engine.refuse = queue_full()
    service = opened(engine)
    assert await refusal(service.generate(generate_request())) is engine.refuse
    await asyncio.wait_for(service.idle(), 1.0)


async def test_a_bug_is_opaque(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.refuse = ZeroDivisionError("secret /path")
    request = generate_request()
    request.request_id = "unlucky"
    error = await refusal(opened(engine).generate(request))
    assert (error.code, error.reason) == (Code.INTERNAL, "INTERNAL")
    assert "unlucky" in error.message
    assert "secret" not in error.message
    assert "secret /path" in caplog.text


async def test_starting_draining_and_lost_are_unavailable() -> None:
    service = Service(model=MODEL, version="0")
    error = await refusal(service.generate(generate_request()))
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "STARTING")
    assert error.retry_after is not None
    with pytest.raises(RequestError, match="loading"):
        service.model_info()

    engine = FakeEngine()
    engine.go.clear()
    service.open(backend(engine))
    live = service.generate(generate_request())
    await anext(live)
    service.drain()
    assert (await refusal(service.generate(generate_request()))).reason == "DRAINING"
    assert service.load().running_requests == 1
    engine.go.set()
    assert text_of(await collect(live)) == "defg"
    await asyncio.wait_for(service.idle(), 1.0)

    service.lose()
    assert (await refusal(service.generate(generate_request()))).reason == "LOST"


async def test_abort_all_ends_what_a_drain_leaves() -> None:
    engine = FakeEngine()
    engine.go.clear()
    service = opened(engine)
    streams = [asyncio.create_task(collect(service.generate(generate_request()))) for _ in range(3)]
    while len(engine.running) < 3:
        await asyncio.sleep(0)
    service.drain()
    service.abort_all()
    await asyncio.wait_for(service.idle(), 1.0)
    for told in await asyncio.gather(*streams):
        assert told[-2].delta.finish_reason == pb.FINISH_REASON_ABORTED


async def test_a_lost_stream_ends_with_the_engines_error() -> None:
    engine = FakeEngine()
    engine.go.clear()
    stream = opened(engine).generate(generate_request())
    await anext(stream)
    engine.fail_all(RequestError(Code.UNAVAILABLE, "gone", reason="STREAM_LOST"))
    assert (await refusal(stream)).reason == "STREAM_LOST"


async def test_tokenize_and_back() -> None:
    service = opened(FakeEngine())
    text = "héllo " * 600  # long enough for a thread
    ids = (await service.tokenize(pb.TokenizeRequest(text=text))).token_ids
    assert list(ids) == list(text.encode())
    assert (await service.detokenize(pb.DetokenizeRequest(token_ids=ids))).text == text
    with pytest.raises(RequestError) as caught:
        await service.detokenize(pb.DetokenizeRequest(token_ids=[1, 300]))
    assert caught.value.field == "token_ids[1]"


async def test_other_methods_have_bounds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    service = opened(FakeEngine())
    with pytest.raises(RequestError, match="at most 1048576") as caught:
        await service.tokenize(pb.TokenizeRequest(text="a" * (2**20 + 1)))
    assert caught.value.field == "text"
    with pytest.raises(RequestError, match="at most 262144") as caught:
        await service.detokenize(pb.DetokenizeRequest(token_ids=[1] * (2**18 + 1)))
    assert caught.value.field == "token_ids"
    with pytest.raises(RequestError, match="at most 1024") as caught:
        service.abort(pb.AbortRequest(request_ids=["a"] * 1025))
    assert caught.value.field == "request_ids"
    monkeypatch.setattr(FakeTokenizer, "encode", lambda *_: [2**31] * (2 << 20))
    with pytest.raises(RequestError, match="too many for a message"):
        await service.tokenize(pb.TokenizeRequest(text="a"))
    monkeypatch.setattr(FakeTokenizer, "decode", lambda *_: "x" * (8 << 20))
    with pytest.raises(RequestError, match="too many for a message"):
        await service.detokenize(pb.DetokenizeRequest(token_ids=[1]))


async def test_a_text_that_cannot_fit_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeTokenizer, "encode", lambda *_: pytest.fail("encoded"))
    error = await refusal(
        opened(FakeEngine()).generate(generate_request("a" * (256 * MAX_CONTEXT + 1)))
    )
    assert (error.code, error.field) == (Code.INVALID_ARGUMENT, "prompt.text")


async def test_facts() -> None:
    service = opened(
        FakeEngine(),
        info=group(
            data_parallel_size=2,
            world_size=2,
            bytes_per_second=4.3e12,
            flops_per_second=790e12,
            graph_batch_sizes=[1, 2, 4],
            quantization="fp8 128x128",
            kv_cache_dtype="fp8_e4m3",
        ),
        defaults=SamplingDefaults(temperature=0.5),
    )
    model = service.model_info()
    assert (model.model, model.architecture) == (MODEL, "FakeForCausalLM")
    assert (model.max_context_tokens, model.vocab_size) == (MAX_CONTEXT, VOCAB_SIZE)
    assert model.default_sampling.temperature == 0.5
    assert not model.default_sampling.HasField("top_p")
    assert model.has_chat_template
    server = service.server_info()
    assert (server.version, server.world_size, server.max_running_requests) == ("1.2.3", 2, 8)
    assert (server.kv_cache_tokens, server.block_size) == (2 * 64 * 4, 4)
    assert server.max_prompt_tokens == MAX_CONTEXT - 1
    assert (server.bytes_per_second, server.flops_per_second) == (4.3e12, 790e12)
    assert server.graph_batch_sizes == [1, 2, 4]
    assert server.quantization == "fp8 128x128"
    assert (server.dtype, server.kv_cache_dtype) == ("float32", "fp8_e4m3")
    load = service.load()
    assert (load.queued_requests, load.kv_cache_usage, load.prefix_hit_tokens) == (2, 0.5, 7)
    assert load.generated_tokens_per_second == 3.0
    assert (load.floor_share, load.decode_floor_share, load.device_busy) == (0.5, 0.75, 0.25)
    assert (load.step_seconds, load.idle_seconds_per_step) == (0.125, 0.0625)
    for said, meant in (
        (load.steps, STEP_RATES.steps),
        (load.decode_steps, STEP_RATES.decode_steps),
    ):
        assert said == pb.StepTotals(**dataclasses.asdict(meant))
        assert len(said.ListFields()) >= 4
