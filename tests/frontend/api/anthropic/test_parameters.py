"""What bodies become: turns, tools, thoughts, options; and which are refused."""

from __future__ import annotations

import json
import resource
from typing import Any

import pytest

from frontend.api.anthropic.parameters import Asked, read_messages, read_prompt
from frontend.errors import RequestError
from frontend.processing.tool_calls.formats.hermes import HERMES
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.api.anthropic.asking import WEATHER, body

USE: Any = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}}
USED = pb.ToolCall(id="toolu_1", name="weather", arguments_json='{"city": "Köln"}')


def read(**parameters: Any) -> Asked:
    return read_messages(body(**parameters), "r", HERMES)


def result(of: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": of, "content": content, **more}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def turns(*messages: tuple[str, Any], system: Any = None) -> list[tuple[str, str]]:
    sent = [{"role": role, "content": content} for role, content in messages]
    read = read_prompt({"messages": sent, "system": system}, HERMES).messages
    return [(pb.Role.Name(turn.role).removeprefix("ROLE_"), turn.content) for turn in read]


def test_results_of_tools_are_turns_before_what_else_the_user_says() -> None:
    messages: list[Any] = [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "any"},
                {"type": "redacted_thinking", "data": "x"},
                text("let me see"),
                USE,
            ],
        },
        {
            "role": "user",
            "content": [
                text("so?"),
                result("toolu_1", [text("warm"), text("dry")]),
                result("toolu_2", "", is_error=True),
                result("toolu_3", None),
            ],
        },
    ]
    assert list(read(messages=messages).chat.messages) == [
        pb.ChatMessage(role=pb.ROLE_USER, content="hi"),
        pb.ChatMessage(
            role=pb.ROLE_ASSISTANT, content="let me see", reasoning="hm", tool_calls=[USED]
        ),
        pb.ChatMessage(role=pb.ROLE_TOOL, content="warm\ndry", tool_call_id="toolu_1"),
        pb.ChatMessage(role=pb.ROLE_TOOL, content="error", tool_call_id="toolu_2"),
        pb.ChatMessage(role=pb.ROLE_TOOL, content="", tool_call_id="toolu_3"),
        pb.ChatMessage(role=pb.ROLE_USER, content="so?"),
    ]


def test_turns_of_one_role_after_another_are_one() -> None:
    got = turns(
        ("user", "a"), ("user", [text("b"), text("c", cache_control={"type": "ephemeral"})]),
        ("assistant", "x"), ("assistant", [text("y"), text("z")]), ("user", "d"),
    )  # fmt: skip
    assert got == [("USER", "a\nb\nc"), ("ASSISTANT", "xyz"), ("USER", "d")]


def test_the_system_text_comes_first_or_where_it_is_said() -> None:
    assert turns(("user", "a"), system="s")[0] == ("SYSTEM", "s")
    header = "x-anthropic-billing-header: cc_version=2.1; cch=ab;"
    got = turns(("user", "a"), ("system", "t"), system=[text(header), text("s"), text("q")])
    assert got == [("SYSTEM", "s\nq"), ("USER", "a"), ("SYSTEM", "t")]
    assert turns(("user", "a"), system=[text(header)]) == [("USER", "a")]


def test_an_assistants_last_turn_is_gone_on_with() -> None:
    user = {"role": "user", "content": "hi"}
    chat = read(messages=[user, {"role": "assistant", "content": "The answer is"}]).chat
    assert chat.continue_final_message
    assert len(chat.messages) == 2
    chat = read(messages=[user, {"role": "assistant", "content": []}]).chat
    assert not chat.continue_final_message
    assert len(chat.messages) == 1


def test_options_reach_the_request() -> None:
    request = read(
        temperature=0.5, top_p=0.25, top_k=7, stop_sequences=["x", "y"], metadata={"user_id": "u"}
    ).chat.request
    assert (request.sampling.temperature, request.sampling.top_p) == (0.5, 0.25)
    assert request.sampling.top_k == 7
    assert list(request.stop_conditions.stop) == ["x", "y"]
    assert request.stop_conditions.max_new_tokens == 50
    assert request.stop_conditions.up_to_context
    assert request.request_id == "r"


@pytest.mark.parametrize(
    ("parameters", "wanted", "kwargs"),
    [
        ({}, pb.ReasoningOptions(leave_out=True), {}),
        ({"thinking": {"type": "adaptive"}}, pb.ReasoningOptions(), {}),
        (
            {"thinking": {"type": "adaptive", "display": "omitted"}},
            pb.ReasoningOptions(leave_out=True),
            {},
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            pb.ReasoningOptions(max_tokens=2000),
            {"enable_thinking": True, "thinking": True},
        ),
        (
            {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}},
            pb.ReasoningOptions(leave_out=True, effort="none"),
            {},
        ),
        (
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
            pb.ReasoningOptions(effort="high"),
            {},
        ),
    ],
)
def test_thoughts(
    parameters: dict[str, Any], wanted: pb.ReasoningOptions, kwargs: dict[str, Any]
) -> None:
    chat = read(**parameters).chat
    assert chat.reasoning == wanted
    assert json.loads(chat.template_kwargs_json or "{}") == kwargs


@pytest.mark.parametrize(
    ("choice", "forced", "shown"),
    [
        (None, False, True),
        ({"type": "auto"}, False, True),
        ({"type": "any"}, True, True),
        ({"type": "tool", "name": "weather"}, True, True),
        ({"type": "none"}, False, False),
    ],
)
def test_tools_are_given_to_the_template_in_its_own_form(
    choice: Any, forced: bool, shown: bool
) -> None:
    described = {**WEATHER, "description": "of a city", "cache_control": {"type": "ephemeral"}}
    chat = read(tools=[described], tool_choice=choice).chat
    assert chat.request.HasField("constraint") == forced
    function = {
        "name": "weather",
        "description": "of a city",
        "parameters": WEATHER["input_schema"],
    }
    tools = json.loads(chat.tools_json or "[]")
    assert tools == ([{"type": "function", "function": function}] if shown else [])


def test_one_call_at_most_where_parallel_ones_are_off() -> None:
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    for parameters, count in (({}, 2), ({"tool_choice": choice}, 1)):
        reader = read(tools=[WEATHER], **parameters).tools.reader()
        reader.push(call * 2)
        reader.flush()
        assert reader.num_calls == count


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_output_keeps_to_a_schema(name: str) -> None:
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    asked = read(**{name: {"format": wanted} if name == "output_config" else wanted})
    assert json.loads(asked.chat.request.constraint.json_schema) == {"type": "object"}


FORMAT = {"type": "json_schema", "schema": {}}


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"max_tokens": None}, "max_tokens is"),
        ({"max_tokens": 0}, "max_tokens is 0, must be at least 1"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role must be"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0].type is image",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text is missing",
        ),
        (
            {"messages": [{"role": "user", "content": [text("a"), USE]}]},
            "messages[0].content[1].type is tool_use, must be text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            "messages[0].content[0].tool_use_id is missing",
        ),
        (
            {"messages": [{"role": "user", "content": [result("a", [{"type": "document"}])]}]},
            "messages[0].content[0].content[0].type is document",
        ),
        ({"messages": [{"role": "assistant", "content": [USE]}]}, "messages end with a tool_use"),
        ({"system": [USE]}, "system[0].type is tool_use"),
        ({"thinking": {"type": "on"}}, "thinking.type must be"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type is web_search"),
        ({"tools": [{"type": "custom"}]}, "tools[0] has no name"),
        ({"tools": [WEATHER] * 129}, "tools has 129 tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice is any, and there are no tools"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name is none of tools"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "any"}, "output_format": FORMAT},
            "tool_choice forces a call, and output_format.schema names",
        ),
        (
            {"output_format": FORMAT, "output_config": {"format": FORMAT}},
            "output_format and output_config.format are the same",
        ),
        ({"container": "c"}, "container is not supported"),
        ({"mcp_servers": [{"name": "m"}]}, "mcp_servers is not supported"),
        ({"temperature": 1e300}, "sampling.temperature is 1e+300"),
    ],
)
def test_what_is_refused(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(**parameters)
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize(
    "parameters",
    [
        {"container": None, "mcp_servers": [], "speed": "standard", "service_tier": "auto"},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"cache_control": {"type": "ephemeral"}, "inference_geo": "eu", "betas": ["b"]},
    ],
)
def test_what_changes_no_answer_is_taken(parameters: dict[str, Any]) -> None:
    assert read(**parameters).chat == read().chat


def test_many_messages_of_one_role_take_the_memory_of_one() -> None:
    """A message of protobuf keeps every text that was ever set."""
    for role in ("user", "assistant"):
        messages = [{"role": role, "content": "a" * 1000}] * 2000
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read(messages=[{"role": "system", "content": "s"}, *messages])
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
