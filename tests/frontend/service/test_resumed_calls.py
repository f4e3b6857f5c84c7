"""Calls that go on where an earlier stream of the same request was lost."""

from __future__ import annotations

import pytest

from frontend.errors import RequestError
from frontend.records import RequestRecord
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL, FakeEngine, answer_text, backend
from tests.frontend.service.test_samples import Records, collect, expected, texts

NUM_TOKENS = 6
PROMPT = "abcdefgh"


def resumed(*cuts: int, **changes: object) -> pb.GenerateRequest:
    """A request whose samples have so many tokens each."""
    whole = expected(len(cuts), NUM_TOKENS)
    return pb.GenerateRequest(
        request_id="r",
        prompt={"text": PROMPT},
        stop_conditions={"max_new_tokens": NUM_TOKENS},
        sampling={"seed": 5},
        n=len(cuts),
        generated=[
            pb.GeneratedTokens(index=index, token_ids=whole[index][:cut].encode())
            for index, cut in enumerate(cuts)
            if cut
        ],
        **changes,
    )


async def outcome(
    request: pb.GenerateRequest,
) -> tuple[list[pb.GenerateResponse], FakeEngine, RequestRecord]:
    engine, records = FakeEngine(), Records()
    service = Service(model=MODEL, version="1", observers=[records])
    service.open(backend(engine))
    events = await collect(service.generate(request))
    [record] = records
    return events, engine, record


@pytest.mark.parametrize(
    "cuts", [(1,), (3, 0), (NUM_TOKENS, 2, 5), (NUM_TOKENS,), (NUM_TOKENS,) * 2]
)
async def test_the_rest_of_the_tokens_and_all_of_the_text_come(cuts: tuple[int, ...]) -> None:
    events, engine, record = await outcome(resumed(*cuts))
    whole = expected(len(cuts), NUM_TOKENS)
    tokens = dict.fromkeys(whole, "")
    for event in events:
        tokens[event.delta.index] += bytes(event.delta.token_ids).decode()
    assert texts(events) == whole
    assert tokens == {index: text[cuts[index] :] for index, text in whole.items()}
    started, finished = events[0].started, events[-1].finished
    assert (started.generated_tokens, started.seed, started.prompt_tokens) == (sum(cuts), 5, 8)
    assert finished.usage.completion_tokens == NUM_TOKENS * len(cuts)
    assert (record.completion_tokens, record.resumed_tokens) == (NUM_TOKENS * len(cuts), sum(cuts))
    assert record.finish_reasons == ("LENGTH",) * len(cuts)
    assert len(engine.requests) == sum(cut < NUM_TOKENS for cut in cuts)


async def test_what_came_before_the_tokens_is_in_the_text_too() -> None:
    events, _, _ = await outcome(resumed(3, 1, output={"echo": True}))
    assert texts(events) == {k: PROMPT + text for k, text in expected(2, NUM_TOKENS).items()}


async def test_the_prompts_log_probabilities_are_awaited_where_the_first_sample_has_none() -> None:
    output = {"logprobs": True, "prompt_logprobs": True}
    events, _, _ = await outcome(resumed(0, 2, output=output))
    assert len(events[0].started.prompt_logprobs) == len(PROMPT) - 1
    deltas = [event.delta for event in events[1:-1]]
    assert all(len(delta.logprobs) == len(delta.token_ids) for delta in deltas)
    assert sum(len(delta.logprobs) for delta in deltas) == 2 * NUM_TOKENS - 2


async def test_a_constraint_is_followed_from_where_it_was() -> None:
    request = resumed(0, constraint={"regex": "[a-c]{2}[x-z]{2}"})
    request.generated.add(index=0, token_ids=b"ccz")
    events, _, _ = await outcome(request)
    assert texts(events) == {0: "cczx\0"}
    request.generated[0].token_ids[:] = b"cz"
    with pytest.raises(RequestError, match=r"generated\[0\].token_ids\[1\] is not what constraint"):
        await outcome(request)


async def test_chat_goes_on_too() -> None:
    engine = FakeEngine()
    service = Service(model=MODEL, version="1")
    service.open(backend(engine))
    chat = pb.ChatRequest(
        messages=[pb.ChatMessage(role=pb.ROLE_USER, content="hi")],
        request={"stop_conditions": {"max_new_tokens": 5}},
    )
    chat.request.generated.add(index=0, token_ids=b"jk")
    events = await collect(service.chat(chat))
    assert texts(events) == {0: answer_text("hi", 5)}
    assert b"".join(bytes(event.delta.token_ids) for event in events) == b"lmn"


async def test_the_lost_stream_of_the_same_id_ends_if_it_is_live_still() -> None:
    engine = FakeEngine()
    engine.go.clear()
    engine.hold_at = 2
    service = Service(model=MODEL, version="1")
    service.open(backend(engine))
    lost = service.generate(resumed(0))
    assert (await anext(lost)).HasField("started")
    with pytest.raises(RequestError, match="request r is live"):
        await anext(service.generate(resumed(0)))
    asked = resumed(2)
    following = service.generate(asked)
    assert (await anext(following)).HasField("started")
    assert engine.aborted == ["r"]
    ended = await collect(lost)
    assert ended[-2].delta.finish_reason == pb.FINISH_REASON_ABORTED
    with pytest.raises(RequestError, match="request r is live"):
        await anext(service.generate(resumed(0)))
    engine.go.set()
    assert texts(await collect(following)) == expected(1, NUM_TOKENS)
    await service.idle()
