"""The OpenAI API over the whole service: right answers, scores that agree."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server import Server

pytestmark = pytest.mark.processes

MODEL = "demo"
SUM: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]
PROMPT = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"enum": ["no", "yes"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the demo model."""
    flags = ["--device", "cpu", "--max-batch-size", "16"]
    with Server(tmp_path_factory.mktemp("server"), *flags) as server:
        yield f"http://{server.http_address}"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_it_is_healthy(url: str, client: openai.OpenAI) -> None:
    with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        assert answer.status == 200
    assert [model.id for model in client.models.list()] == [MODEL]


def test_chat_answers_whole_and_streamed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=SUM, n=2)
    assert [choice.message.content for choice in answer.choices] == ["42", "42"]
    assert answer.choices[0].finish_reason == "stop"
    with client.chat.completions.create(model=MODEL, messages=SUM, stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "42"


def test_a_score_is_the_sum_of_what_was_drawn(client: openai.OpenAI) -> None:
    """The same tokens, drawn and read, have the same log-probabilities."""
    drawn = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2, logprobs=1)
    assert drawn.choices[0].text == "42"
    assert drawn.choices[0].logprobs is not None
    scored = client.completions.create(
        model=MODEL, prompt=PROMPT + "42", max_tokens=0, echo=True, logprobs=1
    )
    assert scored.choices[0].text == PROMPT + "42"
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens or [])[-2:] == ["4", "2"]
    read, made = logprobs.token_logprobs or [], drawn.choices[0].logprobs.token_logprobs or []
    for one, other in zip(read[-2:], made, strict=True):
        assert math.isclose(one, other, abs_tol=1e-3)
    assert read[0] is None
    assert min(read[1:]) < -1.0, "not every token of a prompt is likely"


def test_output_keeps_to_a_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=SUM,
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": ANSWER}},
    )
    assert json.loads(answer.choices[0].message.content or "")["answer"] in ("no", "yes")
    assert answer.choices[0].finish_reason == "stop"


def test_a_tool_can_be_forced(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "decide", "parameters": ANSWER}}
    choice: Any = {"type": "function", "function": {"name": "decide"}}
    answer = client.chat.completions.create(
        model=MODEL, messages=SUM, max_tokens=64, tools=[tool], tool_choice=choice
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments)["answer"] in ("no", "yes")
