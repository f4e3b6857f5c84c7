"""What the fields of an OpenEngine request mean, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.api.openengine.request import (
    PRIORITY,
    TARGET_RANK,
    generate_request,
    own_metadata,
)
from frontend.errors import RequestError
from switchyard.openengine.v1 import openengine_pb2 as oe
from switchyard.v1 import inference_pb2 as pb

FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"request_id": "r", "model": "m"}, {"request_id": "r", "model": "m"}),
    ({"prompt": "abc"}, {"prompt": {"text": "abc"}}),
    ({"sampling": {"temperature": 0.0}}, {"sampling": {"temperature": 0.0}}),
    ({"sampling": {"top_p": 0.5, "top_k": 3}}, {"sampling": {"top_p": 0.5, "top_k": 3}}),
    ({"sampling": {"top_k": -1}}, {"sampling": {"top_k": 0}}),
    ({"sampling": {"seed": 2**64 - 1}}, {"sampling": {"seed": 2**64 - 1}}),
    ({"sampling": {"num_sequences": 3}}, {"n": 3}),
    ({"stopping": {"max_tokens": 4, "min_tokens": 2}},
     {"stop_conditions": {"max_new_tokens": 4, "min_new_tokens": 2}}),
    ({"stopping": {"conditions": [{"stop_text": "x"}, {"stop_token_id": 5}]}},
     {"stop_conditions": {"stop": ["x"], "stop_token_ids": [5]}}),
    ({"stopping": {"ignore_eos": True, "include_stop_in_output": True}},
     {"stop_conditions": {"ignore_eos": True, "include_stop": True}}),
    ({"response": {"return_output_logprobs": True}}, {"output": {"logprobs": True}}),
    ({"response": {"output_candidates": {"top_n": 2}}},
     {"output": {"logprobs": True, "top_logprobs": 2}}),
    ({"response": {"prompt_candidates": {"top_n": 2}}},
     {"output": {"prompt_logprobs": True, "top_logprobs": 2}}),
    ({"guided": {"json_schema": "{}"}}, {"constraint": {"json_schema": "{}"}}),
    ({"guided": {"regex": "a"}}, {"constraint": {"regex": "a"}}),
    ({"guided": {"ebnf_grammar": 'start: "a"'}}, {"constraint": {"grammar": 'start: "a"'}}),
    ({"guided": {"json_object": {}}}, {"constraint": {"json_object": True}}),
    ({"guided": {"choice": {"choices": ["a", "b"]}}},
     {"constraint": {"grammar": 'start: "a" | "b"'}}),
]  # fmt: skip


def asked(fields: dict[str, Any], **metadata: str) -> pb.GenerateRequest:
    return generate_request(oe.GenerateRequest(**fields), metadata)


@pytest.mark.parametrize(("fields", "expected"), FIELDS)
def test_a_field_means_what_it_meant_there(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    plain = asked({})
    plain.MergeFrom(pb.GenerateRequest(**expected))
    found = asked(fields)
    # Without input a prompt of no tokens is asked for.
    if "prompt" in fields:
        plain.prompt.CopyFrom(pb.Prompt(**expected["prompt"]))
    assert found == plain


def test_tokens_are_taken_and_text_is_left_out_without_a_tokenizer() -> None:
    request = oe.GenerateRequest(token_ids={"ids": [1, 2]})
    found = generate_request(request, {}, has_tokenizer=False)
    assert list(found.prompt.tokens.ids) == [1, 2]
    assert found.output.skip_detokenize


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("media", {"media": [{}]}),
        ("lora_name", {"lora_name": "x"}),
        ("kv.session", {"kv": {"session": {}}}),
        ("kv.bypass_prefix_cache", {"kv": {"bypass_prefix_cache": True}}),
        ("kv.cache_salt", {"kv": {"cache_salt": "x"}}),
        ("guided.structural_tag", {"guided": {"structural_tag": "{}"}}),
        ("guided.backend", {"guided": {"backend": "x", "regex": "a"}}),
        ("response.prompt_logprob_start", {"response": {"prompt_logprob_start": 1}}),
        ("response.output_candidates.all", {"response": {"output_candidates": {"all": {}}}}),
        ("response.prompt_candidates.token_ids",
         {"response": {"prompt_candidates": {"token_ids": {}}}}),
    ],
)  # fmt: skip
def test_what_is_not_done_here_is_refused(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        asked(fields)
    assert caught.value.field == field


def test_the_greater_priority_goes_first_there() -> None:
    for text, expected in (("7", -7), ("-7", 7), ("0", 0)):
        assert generate_request(oe.GenerateRequest(), {PRIORITY: text}).priority == expected


@pytest.mark.parametrize(
    "metadata",
    [
        [(PRIORITY, "high")],
        [(PRIORITY, str(2**31))],
        [(PRIORITY, str(-(2**31)))],
        [(PRIORITY, "1"), (PRIORITY, "1")],
        [(TARGET_RANK, "1")],
    ],
)
def test_metadata_is_checked(metadata: list[tuple[str, str]]) -> None:
    with pytest.raises(RequestError) as caught:
        generate_request(oe.GenerateRequest(), own_metadata([*metadata, ("other", "x")]))
    assert caught.value.field == metadata[0][0]
