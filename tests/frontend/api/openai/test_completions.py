"""Completions through the real `openai` client: prompts of four forms, echo, scoring."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from frontend.api.openai.logprobs import text_offsets
from frontend.processing.text_decoders import WindowDecoder
from frontend.service.calls import KeyLimit
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL, FakeEngine, answer_text, backend
from tests.frontend.http_fakes import ScriptedService, running_http, says


@pytest.mark.parametrize(
    "prompt", ["abc", [97, 98, 99], ["abc"], [[97, 98, 99]]], ids=["text", "ids", "texts", "lists"]
)
@pytest.mark.parametrize("echo", [False, True])
async def test_a_prompt_has_four_forms(prompt: Any, echo: bool) -> None:
    async with running_http() as http:
        answer = await http.client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=4, echo=echo
        )
    assert answer.choices[0].text == ("abc" if echo else "") + answer_text("abc", 4)
    assert answer.choices[0].finish_reason == "length"


async def test_without_a_limit_it_is_openais() -> None:
    async with running_http() as http:
        answer = await http.client.completions.create(model=MODEL, prompt="abc")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_are_answered_in_one_call(stream: bool) -> None:
    prompts = ["a", "m", "x"] * 5
    async with running_http() as http:
        create: Any = http.client.completions.create
        options = {"stream_options": {"include_usage": True}} if stream else {}
        answer = await create(model=MODEL, prompt=prompts, max_tokens=3, stream=stream, **options)
        texts = [""] * len(prompts)
        if stream:
            async for chunk in answer:
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
                usage = chunk.usage
        else:
            texts, usage = [choice.text for choice in answer.choices], answer.usage
    assert texts == [answer_text(prompt, 3) for prompt in prompts]
    assert usage.completion_tokens == 3 * len(prompts)


async def test_more_prompts_than_a_key_may_have_requests_are_refused_for_good() -> None:
    service = Service(model=MODEL, version="1", key_limit=KeyLimit(2))
    service.open(backend(FakeEngine()))
    async with running_http(service, authenticate=lambda _: "alice") as http:
        create: Any = http.client.completions.create
        with pytest.raises(openai.BadRequestError, match="has 3 entries") as caught:
            await create(model=MODEL, prompt=["a", "b", "c"], max_tokens=2)
        assert caught.value.param == "prompt"
        assert len((await create(model=MODEL, prompt=["a", "b"], max_tokens=2)).choices) == 2


async def test_one_refused_prompt_refuses_all() -> None:
    async with running_http() as http:
        with pytest.raises(openai.BadRequestError) as caught:
            await http.client.completions.create(model=MODEL, prompt=["abc", "a" * 100])
        assert caught.value.code == "context_length_exceeded"
        assert not http.engine.running


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_a_prompt_is_scored_as_evaluation_harnesses_ask(max_tokens: int) -> None:
    """Theirs is the sum of ``token_logprobs`` and whether each is the best of ``top_logprobs``."""
    delta = says("d", pb.FINISH_REASON_LENGTH, logprobs=[-0.25])
    delta.top_logprobs.add(token_ids=[100], logprobs=[-0.25])
    service = ScriptedService([delta], prompt_logprobs=[-0.5, -0.125])
    async with running_http(service) as http:
        answer = await http.client.completions.create(
            model=MODEL, prompt="abc", echo=True, logprobs=1, max_tokens=max_tokens
        )
    asked = service.requests[0]
    assert asked.prompt == pb.Prompt(tokens=pb.TokenIds(ids=b"abc"))
    assert asked.output.prompt_logprobs
    assert asked.stop_conditions.max_new_tokens == 1
    choice, more = answer.choices[0], max_tokens
    logprobs = choice.logprobs
    assert logprobs is not None
    assert choice.text == "abc" + "d" * more
    assert logprobs.tokens == list("abc") + ["d"] * more
    assert logprobs.token_logprobs == [None, -0.5, -0.125] + [-0.25] * more
    assert logprobs.text_offset == [0, 1, 2] + [3] * more
    tops = [None, {"z": -0.125, "b": -0.5}, {"z": -0.125, "c": -0.125}]
    assert logprobs.top_logprobs == tops + [{"d": -0.25}] * more
    assert answer.usage is not None
    assert answer.usage.completion_tokens == max_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_offsets_are_places_in_the_text(stream: bool) -> None:
    """A token is a byte: characters of several have one place."""
    deltas = [
        pb.Delta(text="", token_ids=[0xC3], logprobs=[-1.0]),
        says("é!", pb.FINISH_REASON_LENGTH, logprobs=[-1.0] * 3),
    ]
    deltas[1].token_ids.pop(0)
    deltas[1].logprobs.pop()
    service = ScriptedService(deltas, prompt_logprobs=[-0.5] * 3)
    async with running_http(service) as http:
        create: Any = http.client.completions.create
        answer = await create(
            model=MODEL, prompt="é x", echo=True, logprobs=0, max_tokens=3, stream=stream
        )
        choices = [chunk.choices[0] async for chunk in answer] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == "é xé!"
    columns = [choice.logprobs for choice in choices if choice.logprobs]
    offsets = [each for column in columns for each in column.text_offset]
    assert offsets == [0, 0, 1, 2, 3, 3, 4]


def test_offsets_of_tokens_that_are_other_words_alone() -> None:
    """As of SentencePiece: a word's blank is dropped at the beginning of a text alone."""
    words = {1: "▁w6", 2: "▁w62", 3: "<s>"}

    def decoder(keep: bool) -> WindowDecoder:
        return WindowDecoder(
            lambda ids: (
                "".join(words[each] for each in ids if keep or each < 3)
                .replace("▁", " ")
                .removeprefix(" ")
            )
        )

    assert text_offsets([1, 2, 1], "w6 w62 w6", decoder) == [0, 2, 6]
    assert text_offsets([3, 1, 2], "w6 w62", decoder) == [0, 0, 2]
    assert text_offsets([1, 2], "?", decoder) == [0, 1]
    assert text_offsets([1, 2], "", lambda _: None) == [0, 0]


BAD: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": []}),
    ("prompt[1]", {"prompt": ["a", 5]}),
    ("prompt", {"prompt": ["a"] * 257}),
    ("prompt[1]", {"prompt": [1, 256]}),
    ("prompt[0]", {"prompt": [-1]}),
    ("suffix", {"suffix": "z"}),
    ("logprobs", {"logprobs": 21}),
    ("logprobs", {"logprobs": True}),
    ("max_tokens", {"max_tokens": 0}),
    ("n", {"n": 4_000_000_000}),
]


async def test_a_bad_field_is_named() -> None:
    async with running_http() as http:
        for param, body in BAD:
            with pytest.raises(openai.BadRequestError) as caught:
                await http.client.post("/completions", body={"prompt": "a", **body}, cast_to=object)
            assert caught.value.param == param
        assert not http.engine.requests
