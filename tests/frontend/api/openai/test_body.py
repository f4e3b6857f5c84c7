"""Any JSON at all is a request or INVALID_ARGUMENT; the readers of fields raise nothing else."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.api.http.body import parse_object
from frontend.api.openai.chat import read_chat
from frontend.api.openai.completions import read_completion
from frontend.errors import Code, RequestError
from frontend.processing.tool_calls.formats.hermes import HERMES

NAMES = [
    "model", "messages", "prompt", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "max_tokens",
    "max_completion_tokens", "min_tokens", "stop_token_ids", "allowed_token_ids", "ignore_eos",
    "skip_special_tokens", "include_stop_str_in_output", "priority", "best_of", "echo", "suffix",
    "logprobs", "top_logprobs", "stream", "stream_options", "response_format", "guided_json",
    "guided_regex", "guided_choice", "structured_outputs", "tools", "tool_choice",
    "parallel_tool_calls", "functions", "function_call", "chat_template_kwargs",
    "parse_special_tokens", "continue_final_message", "add_generation_prompt", "bad_words",
    "prompt_logprobs", "use_beam_search", "documents",
]  # fmt: skip
WORDS = [
    "user",
    "content",
    "role",
    "type",
    "text",
    "function",
    "name",
    "json_schema",
    "schema",
    "5",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=5)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5))
def test_any_object_is_a_job_or_refused_by_name(body: dict[str, object]) -> None:
    for read in (functools.partial(read_chat, tool_format=HERMES), read_completion):
        refusal = None
        try:
            read(parse_object(json.dumps(body).encode()), "id", "fake")
        except RequestError as error:
            refusal = error
        if refusal is not None:
            assert refusal.code is Code.INVALID_ARGUMENT
            assert refusal.field


_ONE = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
_JSON = st.recursive(
    _ONE, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner), max_leaves=6
)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_an_object_or_refused(body: bytes) -> None:
    try:
        value = json.loads(body.decode("utf-8-sig"))
    except ValueError:
        value = None
    if isinstance(value, dict):
        assert parse_object(body) == value
    else:
        with pytest.raises(RequestError) as caught:
            parse_object(body)
        assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, "body")


def test_a_body_is_utf_8_and_nothing_that_is_read_as_it() -> None:
    body = '{"prompt": "\u2200", "y": [[], []]}'
    assert parse_object(body.encode("utf-8-sig"))["prompt"] == "\u2200"
    half_a_pair = b'{"prompt": "a\xed\xa0\x80"}'
    for other in (
        body.encode("utf-16-le"),
        body.encode("utf-16"),
        body.encode("utf-32"),
        half_a_pair,
    ):
        with pytest.raises(RequestError, match="in UTF-8"):
            parse_object(other)
