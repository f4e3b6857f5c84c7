"""LlamaIndex's `OpenAILike`."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.clients.cases import ANSWER, KEY, MODEL, NO_TOP_P, PAINT, SUM, Paint, needs, terse

pytestmark = needs("llama_index")


def model(url: str, **extra: Any) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model=MODEL,
        api_base=url,
        api_key=KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
        additional_kwargs=extra,
    )


def messages(text: str) -> list[Any]:
    from llama_index.core.llms import ChatMessage

    return [ChatMessage(role="user", content=text)]


def test_it_answers_whole_and_streamed(url: str) -> None:
    answer = model(url).chat(messages(SUM))
    assert answer.message.content == ANSWER
    assert answer.raw.usage.completion_tokens == 3
    assert "".join(piece.delta for piece in model(url).stream_chat(messages(SUM))) == ANSWER


def test_a_tool_is_called(url: str) -> None:
    from llama_index.core.tools import FunctionTool

    tool = FunctionTool.from_defaults(fn=lambda **_: "done", name="paint", fn_schema=Paint)
    chat = model(url, logit_bias=terse())
    answer = chat.chat_with_tools([tool], PAINT, tool_required=True)
    (call,) = chat.get_tool_calls_from_response(answer)
    Paint.model_validate(call.tool_kwargs)


def test_output_is_a_model_of_pydantic(url: str) -> None:
    chat = model(url, logit_bias=terse())
    assert isinstance(chat.as_structured_llm(Paint).chat(messages(PAINT)).raw, Paint)


def test_an_error_has_its_class(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="top_p"):
        model(url, top_p=NO_TOP_P).chat(messages(SUM))
