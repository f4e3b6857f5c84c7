"""litellm, by its provider of servers that speak OpenAI's API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.cases import ANSWER, KEY, MODEL, NO_TOP_P, PAINT, SUM, Paint, needs, terse

pytestmark = needs("litellm")


@pytest.fixture
def complete(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``litellm.completion`` of this server."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network for one
    import litellm

    def completion(text: str, **options: Any) -> Any:
        return litellm.completion(
            model=f"openai/{MODEL}",
            api_base=url,
            api_key=KEY,
            messages=[{"role": "user", "content": text}],
            num_retries=0,
            **options,
        )

    return completion


def test_it_answers_whole_and_streamed(complete: Any) -> None:
    answer = complete(SUM, n=2, logprobs=True)
    assert [choice.message.content for choice in answer.choices] == [ANSWER] * 2
    assert answer.choices[0].logprobs.content[0].token == ANSWER[0]
    pieces = list(complete(SUM, stream=True, stream_options={"include_usage": True}))
    assert (
        "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == ANSWER
    )
    assert pieces[-1].usage.completion_tokens == 3


def test_a_tool_is_called(complete: Any) -> None:
    function = {"name": "paint", "parameters": Paint.model_json_schema(), "strict": True}
    tools = [{"type": "function", "function": function}]
    answer = complete(PAINT, tools=tools, tool_choice="required", logit_bias=terse())
    (call,) = answer.choices[0].message.tool_calls
    Paint.model_validate_json(call.function.arguments)


def test_output_keeps_to_a_model_of_pydantic(complete: Any) -> None:
    answer = complete(PAINT, response_format=Paint, logit_bias=terse())
    Paint.model_validate(json.loads(answer.choices[0].message.content))


def test_an_error_has_its_class(complete: Any) -> None:
    import litellm

    with pytest.raises(litellm.BadRequestError, match="top_p"):
        complete(SUM, top_p=NO_TOP_P)
