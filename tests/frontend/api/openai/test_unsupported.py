"""Parameters that are not built: all that clients know are decided, and docs/http.md says how."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from frontend.api.openai.chat import read_chat as read_any_chat
from frontend.api.openai.completions import read_completion
from frontend.api.openai.parameters.models import (
    ChatBody,
    CompletionBody,
    StreamOptions,
    StructuredOutputs,
)
from frontend.api.openai.parameters.unsupported import SAME_AS_N, TABLE, Unsupported
from frontend.errors import RequestError
from frontend.processing.tool_calls.formats.hermes import HERMES

PAGE = (Path(__file__).parents[4] / "docs" / "http.md").read_text(encoding="utf-8")
read_chat = functools.partial(read_any_chat, tool_format=HERMES)
READERS = {"chat": read_chat, "completions": read_completion}
BODIES = {"chat": ChatBody, "completions": CompletionBody}
BASE = {"messages": [{"role": "user", "content": "a"}], "prompt": "a"}

# The parameters of POST /v1/chat/completions and /v1/completions.
OPENAI = """
audio best_of echo frequency_penalty function_call functions logit_bias logprobs
max_completion_tokens max_tokens messages metadata modalities model n parallel_tool_calls
prediction presence_penalty
prompt prompt_cache_key prompt_cache_retention reasoning_effort response_format safety_identifier
seed service_tier stop store stream stream_options stream_options.include_usage
stream_options.include_obfuscation suffix temperature tool_choice tools top_logprobs top_p user
verbosity web_search_options
"""
VLLM = """
add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template
chat_template_kwargs continue_final_message documents early_stopping guided_choice
guided_decoding_backend guided_grammar guided_json guided_regex guided_whitespace_pattern ignore_eos
include_reasoning include_stop_str_in_output kv_transfer_params length_penalty logits_processors
media_io_kwargs min_p min_tokens mm_processor_kwargs priority prompt_embeds prompt_logprobs
repetition_detection repetition_penalty request_id return_token_ids return_tokens_as_token_ids
skip_special_tokens spaces_between_special_tokens stop_token_ids
stream_options.continuous_usage_stats structural_tag structured_outputs structured_outputs.choice
structured_outputs.disable_additional_properties structured_outputs.disable_any_whitespace
structured_outputs.grammar structured_outputs.json structured_outputs.json_object
structured_outputs.regex structured_outputs.structural_tag structured_outputs.whitespace_pattern
thinking_token_budget top_k truncate_prompt_tokens use_beam_search vllm_xargs
"""


def taken() -> set[str]:
    fields = {*ChatBody.model_fields, *CompletionBody.model_fields}
    inner = {"stream_options": StreamOptions, "structured_outputs": StructuredOutputs}
    for outer, model in inner.items():
        fields |= {f"{outer}.{field.alias or name}" for name, field in model.model_fields.items()}
    return fields


def test_every_parameter_of_openai_and_vllm_is_taken_refused_or_ignored() -> None:
    refused = {row.name for row in TABLE}
    line = PAGE.partition("\nIgnored: ")[2].partition("\n\n")[0]
    ignored = set(re.findall("`([a-z_.]+)`", line))
    for name in (OPENAI + VLLM).split():
        assert name in taken() | refused | ignored, name
    assert not ignored & refused
    assert not ignored & taken()
    assert refused & taken() == {"echo", "thinking_token_budget"}  # of one API


def test_the_page_s_table_is_the_code_s() -> None:
    rows = PAGE.partition("| refused | where | but |\n|---|---|---|\n")[2].partition("\n\n")[0]
    written = [tuple(cell.strip() for cell in row.split("|")[1:-1]) for row in rows.splitlines()]
    assert written == [
        (
            f"`{row.name}`",
            row.only or "both",
            ", ".join(
                "`n`" if each == SAME_AS_N else f"`{json.dumps(each)}`" for each in row.neutral
            ),
        )
        for row in TABLE
    ]


def body(row: Unsupported, value: Any) -> dict[str, Any]:
    outer, _, inner = row.name.rpartition(".")
    return BASE | ({outer: {inner: value}} if outer else {inner: value})


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.name}-{row.only}")
def test_what_would_change_the_answer_is_refused_and_nothing_else(row: Unsupported) -> None:
    for api in [row.only] if row.only else READERS:
        read = READERS[api]
        for value in (None, *row.neutral):
            read(body(row, 1 if value == SAME_AS_N else value), "", "m")
        for value in ("x", 3, ["x"], {"x": 1}, True, False):
            if value in row.neutral:
                continue
            with pytest.raises(RequestError, match="is not supported") as caught:
                read(body(row, value), "", "m")
            assert caught.value.field == row.name
    for api in READERS.keys() - {row.only} if row.only else ():
        refused = any(each.name == row.name and each.only == api for each in TABLE)
        if not refused and row.name not in BODIES[api].model_fields:
            READERS[api](body(row, True), "", "m")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"use_beam_search": True}, "use_beam_search is not supported; leave it out or send false"),
        ({"length_penalty": True}, "length_penalty is not supported; leave it out or send 1"),
        ({"documents": [{}]}, "documents is not supported; send them in chat_template_kwargs"),
        ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens is not supported; leave it out"),
        ({"n": 2, "best_of": 3}, "best_of is not supported; leave it out"),
        (
            {"structured_outputs": {"structural_tag": "x"}},
            "structured_outputs.structural_tag is not",
        ),
    ],
)
def test_a_refusal_says_what_to_do(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_chat(BASE | values, "", "m")
    assert caught.value.message.startswith(complaint)


def test_n_of_n_is_taken() -> None:
    assert read_completion(BASE | {"n": 3, "best_of": 3}, "", "m").requests[0].n == 3
    assert read_completion(BASE | {"length_penalty": 1.0}, "", "m")
