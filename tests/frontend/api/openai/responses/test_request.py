"""Parameters of /v1/responses: what they become, what is refused, and what the answer repeats."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming

from frontend.api.openai.parameters.unsupported import Unsupported
from frontend.api.openai.responses.models import ResponsesBody
from frontend.api.openai.responses.unsupported import RESPONSES_TABLE
from frontend.errors import RequestError
from tests.frontend.api.openai.responses.asking import AGENTS, PATCH, WEATHER, read

PAGE = (Path(__file__).parents[5] / "docs" / "responses.md").read_text(encoding="utf-8")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def shown(**values: Any) -> Any:
    """The tools that the template is given."""
    return json.loads(read(**values).request.tools_json or "null")


def refusal(**values: Any) -> str:
    with pytest.raises(RequestError) as caught:
        read(**values)
    return caught.value.message


def test_fields_reach_the_request() -> None:
    asked = read(
        model="m",
        temperature=0.5,
        top_p=0.25,
        max_output_tokens=7,
        stop="x",
        logit_bias={"5": 1.5},
        top_logprobs=2,
        reasoning={"effort": "low"},
        chat_template_kwargs={"x": 1},
        parse_special_tokens=True,
    )
    request = asked.request.request
    assert (request.model, request.request_id) == ("m", "r")
    assert (request.sampling.temperature, request.sampling.top_p) == (0.5, 0.25)
    assert (request.stop_conditions.max_new_tokens, request.stop_conditions.stop) == (7, ["x"])
    assert dict(request.sampling.logit_bias) == {5: 1.5}
    assert (request.output.logprobs, request.output.top_logprobs) == (True, 2)
    assert asked.request.reasoning.effort == "low"
    assert json.loads(asked.request.template_kwargs_json) == {"x": 1}
    assert asked.request.parse_special_tokens


@pytest.mark.parametrize(
    ("form", "language", "value"),
    [
        ({"type": "json_object"}, "json_object", True),
        ({"type": "json_schema", "name": "n", "schema": SCHEMA}, "json_schema", SCHEMA),
        (
            {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True},
            "json_schema",
            {**SCHEMA, "additionalProperties": False},
        ),
        ({"type": "text"}, None, None),
    ],
)
def test_a_format_is_a_language(form: Any, language: str | None, value: Any) -> None:
    asked = read(text={"format": form})
    constraint = asked.request.request.constraint
    assert constraint.WhichOneof("language") == language
    if language == "json_schema":
        assert json.loads(constraint.json_schema) == value
        assert asked.names["constraint.json_schema"] == "text.format.schema"
    assert asked.response["text"]["format"] == form


def test_the_template_is_shown_functions() -> None:
    function, custom = shown(tools=[WEATHER, PATCH])
    assert function["type"] == custom["type"] == "function"
    assert function["function"] == {key: WEATHER[key] for key in WEATHER if key != "type"}
    assert custom["function"]["name"] == "patch"
    assert custom["function"]["description"] == "Change files."
    assert custom["function"]["parameters"]["required"] == ["input"]
    assert shown(tools=[WEATHER], tool_choice="none") is None


def test_a_namespace_is_part_of_its_tools_names() -> None:
    asked: dict[str, Any] = {"tools": [PATCH, AGENTS]}
    names = [tool["function"]["name"] for tool in shown(**asked)]
    assert names == ["patch", "agents__ask", "agents__patch"]
    called = {"type": "function_call", "name": "ask", "call_id": "c", "namespace": "agents"}
    (turn,) = read([called], **asked).request.messages
    assert turn.tool_calls[0].name == "agents__ask"
    assert read(**asked).response["tools"] == [PATCH, AGENTS]


@pytest.mark.parametrize(
    ("choice", "names", "is_forced"),
    [
        ("auto", ["weather", "patch"], False),
        ("required", ["weather", "patch"], True),
        ({"type": "function", "name": "weather"}, ["weather", "patch"], True),
        ({"type": "custom", "name": "patch"}, ["weather", "patch"], True),
        (
            {"type": "allowed_tools", "mode": "auto",
             "tools": [{"type": "custom", "name": "patch"}]},
            ["patch"],
            False,
        ),
        (
            {"type": "allowed_tools", "mode": "required",
             "tools": [{"type": "function", "name": "weather"}]},
            ["weather"],
            True,
        ),
    ],
)  # fmt: skip
def test_a_choice_says_what_is_shown_and_what_must_be(
    choice: Any, names: list[str], is_forced: bool
) -> None:
    asked: dict[str, Any] = {"tools": [WEATHER, PATCH], "tool_choice": choice}
    assert [tool["function"]["name"] for tool in shown(**asked)] == names
    assert read(**asked).request.request.HasField("constraint") == is_forced
    assert read(**asked).response["tool_choice"] == choice


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        *(
            (
                {"tools": [WEATHER, {"type": kind}]},
                f"tools[1].type is {kind}, and this server runs no tools; leave it out, or ",
            )
            for kind in ("web_search", "file_search", "computer_use_preview", "mcp",
                         "image_generation", "code_interpreter", "local_shell")
        ),
        (
            {"tools": [{**AGENTS, "tools": [WEATHER, {"type": "mcp"}]}]},
            "tools[0].tools[1].type is mcp, and this server runs no tools",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0] has no name; send {type, name}"),
        (
            {"tools": [{**PATCH, "format": {"type": "grammar", "syntax": "lark"}}]},
            "tools[0].format.type is grammar, and a custom tool's input is held to no grammar; ",
        ),
        ({"tool_choice": "required"}, "tool_choice is required, and there are no tools"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}},
            "tool_choice names no function of tools",
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "web_search"}},
            'tool_choice must be none, auto, required, {"type": "function" or "custom", ',
        ),
        ({"tools": [WEATHER] * 129}, "tools has 129 tools, at most 128 are taken"),
        (
            {"tools": [WEATHER], "tool_choice": "required",
             "text": {"format": {"type": "json_object"}}},
            "tool_choice forces a call, and text.format names a language",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n"}}},
            "text.format has no schema; send {type, name, schema}",
        ),
        ({"include": ["file_search_call.results"]}, "include[0] must be 'reasoning.encrypted_"),
        ({"reasoning": {"effort": "most"}}, "reasoning.effort must be 'none', 'minimal', "),
        ({"max_output_tokens": 0}, "max_output_tokens is 0, must be at least 1"),
        ({"temperature": "hot"}, "temperature is a string, must be a finite number"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(values: dict[str, Any], complaint: str) -> None:
    assert refusal(**values).startswith(complaint)


def test_the_answer_repeats_the_parameters() -> None:
    sent: dict[str, Any] = {
        "instructions": "be brief",
        "max_output_tokens": 7,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "temperature": 0.5,
        "tools": [{**WEATHER, "strict": True}, PATCH],
        "top_p": 0.25,
        "user": "u",
    }
    response: dict[str, Any] = {**read(store=True, service_tier="flex", **sent).response}
    assert {name: response[name] for name in sent} == sent
    assert (response["store"], response["service_tier"]) == (False, "default")
    assert (response["id"], response["model"]) == ("resp_r", "m")
    assert read(tools=[{"type": "function", "name": "f"}]).response["tools"] == [
        {"type": "function", "name": "f", "parameters": None, "strict": None}
    ]
    assert read(user=5).response["user"] is None


@pytest.mark.parametrize("row", RESPONSES_TABLE, ids=lambda row: row.name)
def test_what_is_not_built_is_refused_by_name(row: Unsupported) -> None:
    outer, _, inner = row.name.rpartition(".")
    for value in (None, *row.neutral):
        read(**({outer: {inner: value}} if outer else {inner: value}))
    refused = refusal(**({outer: {inner: "x"}} if outer else {inner: "x"}))
    assert refused.startswith(f"{row.name} is not supported; {row.remedy}")


def test_the_page_s_table_is_the_code_s() -> None:
    rows = PAGE.partition("| refused | but | instead |\n|---|---|---|\n")[2].partition("\n\n")[0]
    written = [tuple(cell.strip() for cell in row.split("|")[1:-1]) for row in rows.splitlines()]
    assert written == [
        (f"`{row.name}`", ", ".join(f"`{json.dumps(each)}`" for each in row.neutral), row.remedy)
        for row in RESPONSES_TABLE
    ]


def test_every_parameter_of_openai_is_taken_refused_or_ignored() -> None:
    ignored = set(re.findall("`([a-z_.]+)`", PAGE.partition("\nIgnored: ")[2].partition("\n\n")[0]))
    refused = {row.name for row in RESPONSES_TABLE}
    taken = set(ResponsesBody.model_fields)
    for name in ResponseCreateParamsNonStreaming.__annotations__:
        assert name in taken | refused | ignored, name
    assert len(ignored | refused | taken) == len(ignored) + len(refused) + len(taken)


def test_errors_of_a_tool_s_schema_name_the_tool() -> None:
    asked = read(tools=[WEATHER], tool_choice={"type": "function", "name": "weather"})
    assert "tools[0].parameters" in asked.names.values()


def test_a_format_goes_before_strict_tools_that_need_not_be_called() -> None:
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA}
    asked = read(tools=[{**WEATHER, "strict": True}], text={"format": form})
    assert json.loads(asked.request.request.constraint.json_schema) == SCHEMA
    assert asked.names["constraint"] == "text.format.schema"
