"""`prompt_logprobs`: vLLM's parameter and shape, of chats and completions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from frontend.api.http import long_json
from tests.frontend.http_fakes import post, running_http

CHAT = {"messages": [{"role": "user", "content": "ab"}], "max_tokens": 1}
COMPLETION = {"prompt": "ab", "max_tokens": 1}


async def ask(path: str, **values: Any) -> tuple[int, Any]:
    async with running_http() as http:
        status, _, answer = await post(http.port, json.dumps(values).encode(), path=path)
        return status, json.loads(answer)


def entry(token: int, num_top: int) -> dict[str, Any]:
    """As the fake engine has it: token t has -t, and the likeliest are t + 1, t + 2, …"""
    others = range(token + 1, token + 1 + num_top)
    found = {
        str(other): {"logprob": -float(other), "rank": rank, "decoded_token": chr(other)}
        for rank, other in enumerate(others, 1)
    }
    return {
        str(token): {"logprob": -float(token), "rank": None, "decoded_token": chr(token)}
    } | found


@pytest.mark.parametrize("num_top", [0, 2])
async def test_a_chat_s_prompt_is_as_its_template_has_it(num_top: int) -> None:
    status, answer = await ask("/v1/chat/completions", **CHAT, prompt_logprobs=num_top)
    assert status == 200
    assert answer["prompt_logprobs"] == [None, *(entry(ord(each), num_top) for each in ":ab")]
    assert answer["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("prompt", ["xab", [120, 97, 98]])
async def test_each_choice_of_a_completion_has_its_prompt_s(prompt: Any) -> None:
    status, answer = await ask(
        "/v1/completions", prompt=[prompt, "yz"] if isinstance(prompt, str) else prompt,
        max_tokens=1, n=2, prompt_logprobs=1,
    )  # fmt: skip
    assert status == 200
    expected = [[None, entry(97, 1), entry(98, 1)]] * 2
    if isinstance(prompt, str):
        expected += [[None, entry(ord("z"), 1)]] * 2
    assert [choice["prompt_logprobs"] for choice in answer["choices"]] == expected


async def test_prompt_and_output_have_alternatives_of_their_own() -> None:
    more = {"logprobs": True, "top_logprobs": 1, "prompt_logprobs": 3}
    _, answer = await ask("/v1/chat/completions", **CHAT, **more)
    [token] = answer["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in token["top_logprobs"]] == ["d"]
    assert [len(each) for each in answer["prompt_logprobs"][1:]] == [4] * 3
    _, answer = await ask("/v1/completions", **COMPLETION, echo=True, logprobs=3, prompt_logprobs=1)
    [choice] = answer["choices"]
    assert [len(each) for each in choice["logprobs"]["top_logprobs"][1:]] == [4, 4]
    assert [len(each) for each in choice["prompt_logprobs"][1:]] == [2]


async def test_without_the_parameter_there_is_no_such_field() -> None:
    _, answer = await ask("/v1/chat/completions", **CHAT)
    assert "prompt_logprobs" not in answer
    _, answer = await ask("/v1/completions", **COMPLETION, prompt_logprobs=None)
    assert "prompt_logprobs" not in answer["choices"][0]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"prompt_logprobs": 21}, "is 21, must be at most 20"),
        ({"prompt_logprobs": -1}, "is -1, must be at least 0"),
        ({"prompt_logprobs": 0, "stream": True}, "is not part of a stream"),
    ],
)
@pytest.mark.parametrize(
    ("path", "base"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
)
async def test_a_bad_value_is_named(
    path: str, base: dict[str, Any], values: dict[str, Any], complaint: str
) -> None:
    status, answer = await ask(path, **base, **values)
    assert (status, answer["error"]["param"]) == (400, "prompt_logprobs")
    assert complaint in answer["error"]["message"]


async def test_every_choice_s_copy_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_json, "MAX_ANSWER_BYTES", 2000)
    assert (await ask("/v1/completions", **COMPLETION, prompt_logprobs=5))[0] == 200
    status, answer = await ask("/v1/completions", **COMPLETION, prompt_logprobs=5, n=8)
    assert (status, answer["error"]["code"]) == (400, "answer_too_large")
