"""Thoughts and what comes behind them are the same when a stream or the workers are lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from frontend.errors import RequestError
from frontend.service import responses
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.played_service import lose_workers, played_service
from tests.frontend.processing.thoughts.test_outputs import TAGS, TOKENIZER, Model

KINDS: dict[str, dict[str, Any]] = {
    "thoughts": {},
    "a budget": {"reasoning": {"max_tokens": 3}},
    "a language": {"request": {"constraint": {"regex": "yes, [a-z]{4} here"}}},
    "both": {
        "request": {"constraint": {"json_schema": '{"enum": ["a", "stop"]}'}},
        "reasoning": {"max_tokens": 3},
    },
    "a stop": {"request": {"stop_conditions": {"stop": ["stop"]}}},
}


def chat(kind: str, generated: list[int] | None = None) -> pb.ChatRequest:
    made = pb.ChatRequest(messages=[{"role": pb.ROLE_USER, "content": "hi"}], **KINDS[kind])
    made.request.sampling.seed = 1
    if generated is not None:
        made.request.generated.add(token_ids=generated)
    return made


async def told(service: Service, asked: pb.ChatRequest) -> tuple[pb.Delta, pb.Usage]:
    answer = await responses.gathered(service.chat(asked))
    usage = answer.finished.usage
    usage.ClearField("cached_prompt_tokens")
    return answer.outputs[0], usage


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_goes_on_from_any_token(kind: str) -> None:
    async with played_service(TOKENIZER, Model(begun=False)) as (service, _):
        whole, usage = await told(service, chat(kind))
        tokens = list(whole.token_ids)
        for cut in range(len(tokens)):
            rest, rest_usage = await told(service, chat(kind, tokens[:cut]))
            assert list(rest.token_ids) == tokens[cut:]
            assert (rest.reasoning, rest.text) == (whole.reasoning, whole.text)
            assert (rest.finish_reason, rest_usage) == (whole.finish_reason, usage)


async def test_tokens_that_could_not_have_come_are_refused() -> None:
    begun = [TAGS.begin_id, *TOKENIZER.encode("stop stop")]
    behind = [*begun, TAGS.end_id, *TOKENIZER.encode("n")]
    async with played_service(TOKENIZER, Model(begun=False)) as (service, _):
        with pytest.raises(RequestError, match="is not what constraint allows") as caught:
            await told(service, chat("a language", behind))
        assert caught.value.field == f"generated[0].token_ids[{len(behind) - 1}]"
        with pytest.raises(RequestError, match="is not what") as caught:
            await told(service, chat("a budget", begun))
        assert caught.value.field == "generated[0].token_ids[4]"


@pytest.mark.parametrize("kind", KINDS)
async def test_the_workers_may_be_lost_after_any_step(kind: str) -> None:
    model = Model(begun=False)
    async with played_service(TOKENIZER, model) as (service, engine):
        whole = await told(service, chat(kind))
        num_steps = len(engine._group.workers.steps)
    assert num_steps >= len(whole[0].token_ids)
    for num_sent in range(1, num_steps):
        async with played_service(TOKENIZER, model) as (service, engine):
            asked = asyncio.create_task(told(service, chat(kind)))
            again = await lose_workers(engine, num_sent, TOKENIZER, model)
            assert await asked == whole, f"lost after step {num_sent}"
            assert engine.load().replayed_requests == 1
            again.cancel()
            await asyncio.wait([again])
