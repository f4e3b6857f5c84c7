"""Errors say the caller's own words: OpenAI's names of parameters, their numbers, true bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from frontend.api.openai.errors import api_error
from frontend.errors import RequestError
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.sequence import check_fits
from frontend.service.service import Service
from tests.frontend.fakes import EOS, MODEL, FakeEngine, backend, group
from tests.frontend.http_fakes import post, running_http

USER = {"role": "user", "content": "abc"}
TOOL = {"type": "function", "name": "f", "function": {"name": "f", "parameters": {"pattern": 5}}}


def calls(**function: str) -> dict[str, Any]:
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", **function}}]}
    return {"messages": [USER, turn]}


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": value}}}


# A body, the parameter at fault, and words of the message.
CASES: list[tuple[dict[str, Any], str, str]] = [
    (
        calls(arguments="1" * 262_145),
        "messages[1].tool_calls[0].function.arguments",
        "function.arguments has 262145 characters",
    ),
    (calls(name="x" * 257), "messages[1].tool_calls[0].function.name", "257"),
    ({"min_tokens": 10, "max_tokens": 5}, "min_tokens", "is 10, more than max_tokens 5"),
    (
        {"min_tokens": 10, "max_completion_tokens": 5},
        "min_tokens",
        "is 10, more than max_completion_tokens 5",
    ),
    ({"min_tokens": 1, "allowed_token_ids": [EOS]}, "allowed_token_ids", "before min_tokens"),
    ({"n": -1}, "n", "is -1, must be 1 to 64"),
    ({"n": 65}, "n", "is 65, must be 1 to 64"),
    ({"n": 10**12}, "n", "is 1e+12, must be 1 to 64"),
    ({"max_tokens": -1}, "max_tokens", "is -1, must be at least 1"),
    ({"max_tokens": 0}, "max_tokens", "is 0, must be at least 1"),
    ({"max_tokens": 10**12}, "max_tokens", "must be at most what the context holds"),
    ({"temperature": 1e308}, "temperature", "is 1e+308, must be in [0, 3.40282e+38]"),
    ({"temperature": -1}, "temperature", "is -1, must be in [0, 3.40282e+38]"),
    ({"top_p": 1e308}, "top_p", "is 1e+308, must be in [0, 1]"),
    ({"logit_bias": {"5": "1"}}, "logit_bias.5", "logit_bias.5 is a string"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "logit_bias.5 is 101, must be in [-100, 100]"),
    ({"logit_bias": {"5": 1e308}}, "logit_bias.5", "is 1e+308"),
    ({"logit_bias": {"300": 1}}, "logit_bias.300", "is no token"),
    ({"guided_json": "{"}, "guided_json", "guided_json is not JSON"),
    ({"guided_json": [1]}, "guided_json", "guided_json is no JSON schema"),
    ({"structured_outputs": {"json": "["}}, "structured_outputs.json", "is not JSON"),
    ({"guided_regex": "("}, "guided_regex", "guided_regex is refused"),
    ({"guided_choice": [""] * 9000}, "guided_choice", "guided_choice has"),
    ({"guided_choice": []}, "guided_choice", "guided_choice is empty"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "is empty"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "is empty; name tokens"),
    ({"response_format": {"schema": {}}}, "response_format", "has no type"),
    ({"response_format": {"json_schema": {"schema": {}}}}, "response_format", "has no type"),
    ({"guided_grammar": "start: start"}, "guided_grammar", "no text can follow"),
    (schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "response_format",
     "no text can follow"),
    (schema({"type": "no"}), "response_format", "response_format is refused"),
    (
        {"guided_regex": "a", "ignore_eos": True},
        "ignore_eos",
        "cannot be set beside guided_regex",
    ),
    ({"guided_regex": "a", "guided_json": {}}, "guided_json", "guided_regex name a language each"),
    (
        {"tools": [TOOL], "tool_choice": "required"},
        "tools[0].function.parameters",
        "tools[0].function.parameters is refused",
    ),
    (
        {"tools": [TOOL, {**TOOL, "function": {"name": "g"}}], "tool_choice": "required"},
        "tools",
        "tools is refused",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"function": {"name": "f"}}},
        "tools[0].function.parameters",
        "tools[0].function.parameters is refused",
    ),
    (
        {"messages": [{"role": "assistant", "content": "a"}, USER]},
        "messages",
        "the first turn must be the user's",
    ),
    ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs", "may not set self"),
]  # fmt: skip
# Names of `switchyard.v1`, and of libraries, that callers do not know.
FOREIGN = (
    "arguments_json",
    "new_tokens",
    "constraint",
    "sampling",
    "stop_conditions",
    "NoExtension",
    "inf,",
)


async def error_of(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, _, answer = await post(port, json.dumps(body).encode(), path=path)
    assert status == 400, body
    error: dict[str, Any] = json.loads(answer)["error"]
    return error


async def test_a_refusal_says_the_callers_own_words() -> None:
    async with running_http() as http:
        for body, param, words in CASES:
            body = {"messages": [USER], **body}
            error = await error_of(http.port, "/v1/chat/completions", body)
            assert (error["param"], words in error["message"]) == (param, True), error
            assert not any(name in error["message"] for name in FOREIGN), error
        assert not http.engine.requests


async def test_a_completion_may_have_no_tokens_with_echo() -> None:
    async with running_http() as http:
        error = await error_of(http.port, "/v1/completions", {"prompt": "a", "max_tokens": -1})
    assert error["message"] == "max_tokens is -1, must be at least 1, or 0 with echo"


async def test_text_beyond_the_vocabulary_is_the_messages_not_one_of_them() -> None:
    service = Service(model=MODEL, version="1")
    service.open(backend(FakeEngine(), info=group(vocab_size=150)))
    messages = [{"role": "user", "content": "é"}]
    async with running_http(service) as http:
        for path, param, body in (
            ("/v1/chat/completions", "messages", {"messages": messages}),
            ("/v1/completions", "prompt", {"prompt": "é"}),
        ):
            error = await error_of(http.port, path, body)
            assert error["param"] == param
            assert error["message"].startswith(f"{param} has text of token ")


async def test_without_a_template_there_are_completions() -> None:
    service = Service(model=MODEL, version="1")
    service.open(backend(FakeEngine(), tokenizer=None))
    async with running_http(service) as http:
        error = await error_of(http.port, "/v1/chat/completions", {"messages": [USER]})
    assert error["message"] == "this model has no chat template; use /v1/completions"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_cache_that_is_too_small(name: str) -> None:
    limits = SchedulerLimits(
        max_batch_size=1,
        max_num_batched_tokens=8,
        block_size=4,
        num_blocks=2,
        max_model_len=64,
        max_queued_requests=1,
        max_queued_tokens=64,
    )
    with pytest.raises(RequestError) as caught:
        check_fits(limits, 10, 5)
    error = api_error(caught.value, {"stop_conditions.max_new_tokens": name}).body["error"]
    assert f"and {name} 5 need" in error["message"]
    assert error["param"] == name


async def test_a_model_without_end_tokens() -> None:
    service = Service(model=MODEL, version="1")
    service.open(backend(FakeEngine(), info=group(eos_token_ids=[])))
    async with running_http(service) as http:
        body = {"messages": [USER], "guided_regex": "a"}
        error = await error_of(http.port, "/v1/chat/completions", body)
    assert error["param"] == "guided_regex"
    assert error["message"].endswith("leave guided_regex unset")
