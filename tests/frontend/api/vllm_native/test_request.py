"""What the fields of a request of vLLM's own protocol mean, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.api.vllm_native.request import generate_request
from frontend.errors import RequestError
from switchyard.v1 import inference_pb2 as pb
from switchyard.vllm import native_pb2 as vllm

FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"request_id": "r", "model": "m", "priority": -3},
     {"request_id": "r", "model": "m", "priority": -3}),
    ({"token_ids": {"ids": [1, 2, 3]}}, {"prompt": {"tokens": {"ids": [1, 2, 3]}}}),
    ({"token_ids": {"ids": [1, 2, 3]}, "truncate_prompt_tokens": 2},
     {"prompt": {"tokens": {"ids": [2, 3]}}}),
    ({"temperature": 0.5}, {"sampling": {"temperature": 0.5}}),
    ({"sampling": {"top_k": 3, "top_p": 0.5, "min_p": 0.25, "seed": -1, "num_sequences": 2}},
     {"sampling": {"top_k": 3, "top_p": 0.5, "min_p": 0.25, "seed": 2**64 - 1}, "n": 2}),
    ({"decoding": {"repetition_penalty": 1.5, "logit_bias": {3: 1.0}, "allowed_token_ids": [3]}},
     {"sampling": {"repetition_penalty": 1.5, "logit_bias": {3: 1.0}, "allowed_token_ids": [3]}}),
    ({"decoding": {"json": "{}"}}, {"constraint": {"json_schema": "{}"}}),
    ({"decoding": {"regex": "a"}}, {"constraint": {"regex": "a"}}),
    ({"decoding": {"grammar": 'start: "a"'}}, {"constraint": {"grammar": 'start: "a"'}}),
    ({"decoding": {"json_object": True}}, {"constraint": {"json_object": True}}),
    ({"decoding": {"json_object": False}}, {}),
    ({"decoding": {"choice": {"choices": ["a", "b"]}}},
     {"constraint": {"grammar": 'start: "a" | "b"'}}),
    ({"stopping": {"max_new_tokens": 4, "min_new_tokens": 2, "ignore_eos": True}},
     {"stop_conditions": {"max_new_tokens": 4, "min_new_tokens": 2, "ignore_eos": True}}),
    ({"stopping": {"stop_strings": ["x"], "stop_token_ids": [5], "include_stop_strings": True}},
     {"stop_conditions": {"stop": ["x"], "stop_token_ids": [5], "include_stop": True}}),
    ({"response": {"output_logprobs": True, "output_candidates": {"top_n": 2}}},
     {"output": {"logprobs": True, "top_logprobs": 2}}),
    ({"response": {"output_candidates": {"top_n": 2}}}, {}),
    ({"response": {"prompt_logprobs": True}}, {"output": {"prompt_logprobs": True}}),
    ({"response": {"output_text": False}}, {"output": {"skip_detokenize": True}}),
    ({"response": {"skip_special_tokens": False}}, {"output": {"keep_special_tokens": True}}),
    ({"response": {"skip_special_tokens": True}}, {}),
]  # fmt: skip


def asked(fields: dict[str, Any], *, streams: bool = True) -> pb.GenerateRequest:
    return generate_request(vllm.GenerateRequest(**fields), streams=streams)


@pytest.mark.parametrize(("fields", "expected"), FIELDS)
def test_a_field_means_what_it_meant_there(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    plain = asked({})
    plain.MergeFrom(pb.GenerateRequest(**expected))
    assert asked(fields) == plain


def test_unset_it_is_greedy_and_as_long_as_the_context() -> None:
    request = asked({"text": "abc"})
    assert request.prompt == pb.Prompt(text="abc")
    assert request.sampling == pb.SamplingParams(temperature=0.0)
    assert not request.stop_conditions.HasField("max_new_tokens")


def test_text_is_made_where_a_stop_string_must_be_found() -> None:
    fields = {"response": {"output_text": False}, "stopping": {"stop_strings": ["x"]}}
    assert not asked(fields).output.skip_detokenize
    request = vllm.GenerateRequest()
    assert generate_request(request, streams=True, has_tokenizer=False).output.skip_detokenize


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("media", {"media": [{}]}),
        ("lora_name", {"lora_name": "x"}),
        ("kv.bypass_prefix_cache", {"kv": {"bypass_prefix_cache": True}}),
        ("kv.cache_salt", {"kv": {"cache_salt": "x"}}),
        ("kv.kv_transfer_params", {"kv": {"kv_transfer_params": {}}}),
        ("decoding.structural_tag", {"decoding": {"structural_tag": "{}"}}),
        ("truncate_prompt_tokens", {"text": "abc", "truncate_prompt_tokens": 2}),
        ("response.output_candidates",
         {"response": {"output_logprobs": True, "output_candidates": {"all": True}}}),
        ("sampling.num_sequences", {"sampling": {"num_sequences": 2}}),
    ],
)  # fmt: skip
def test_what_is_not_done_here_is_refused(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        asked(fields, streams=False)
    assert caught.value.field == field
