"""instructor: output as models of pydantic, by each way that it knows."""

from __future__ import annotations

from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.clients.cases import KEY, MODEL, NO_TOP_P, PAINT, Paint, needs, terse

pytestmark = needs("instructor")

QUESTION: list[Any] = [{"role": "user", "content": PAINT}]


def client(url: str, mode: str) -> Any:
    import instructor

    wrapped = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
    return instructor.from_openai(wrapped, mode=instructor.Mode[mode])


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_output_is_a_model_of_pydantic(url: str, mode: str) -> None:
    answer = client(url, mode).chat.completions.create(
        model=MODEL, messages=QUESTION, response_model=Paint, logit_bias=terse()
    )
    assert isinstance(answer, Paint)


class Wall(BaseModel):
    """Not `Paint`: of what is not whole yet, instructor takes no enum."""

    colour: Literal["red", "blue"]


def test_a_stream_ends_as_a_model_of_pydantic(url: str) -> None:
    *_, last = client(url, "TOOLS").chat.completions.create_partial(
        model=MODEL, messages=QUESTION, response_model=Wall, logit_bias=terse()
    )
    Wall.model_validate(last.model_dump())


def test_an_error_has_its_class(url: str) -> None:
    with pytest.raises(Exception, match="top_p"):
        client(url, "TOOLS").chat.completions.create(
            model=MODEL, messages=QUESTION, response_model=Paint, top_p=NO_TOP_P
        )
