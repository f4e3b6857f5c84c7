"""Items of the input as turns: which make one, and what is refused by its place."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from frontend.api.openai.responses.thoughts import sealed
from frontend.errors import RequestError
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.api.openai.responses.asking import PATCH, WEATHER, read

ASKED = {"role": "user", "content": "a"}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "R"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "warm"}


def turns(items: Any, **values: Any) -> list[pb.ChatMessage]:
    return list(read(items, **values).request.messages)


def assistant(content: str = "", **more: Any) -> pb.ChatMessage:
    return pb.ChatMessage(role=pb.ROLE_ASSISTANT, content=content, **more)


def user(content: str) -> pb.ChatMessage:
    return pb.ChatMessage(role=pb.ROLE_USER, content=content)


def system(content: str) -> pb.ChatMessage:
    return pb.ChatMessage(role=pb.ROLE_SYSTEM, content=content)


def test_a_text_is_the_user_s() -> None:
    assert turns("hello") == [user("hello")]
    assert turns("hello", instructions="be brief") == [system("be brief"), user("hello")]


def test_system_turns_at_the_beginning_are_one() -> None:
    items = [
        {"role": "developer", "content": "b"},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "c"}]},
        ASKED,
        {"role": "developer", "content": "d"},
        {"role": "system", "content": "e"},
    ]
    found = turns(items, instructions="a")
    assert found == [system("a\n\nb\n\nc"), user("a"), system("d"), system("e")]


def test_what_the_assistant_did_in_a_row_is_one_turn() -> None:
    items = [
        ASKED,
        {"type": "reasoning", "id": "rs_1", "summary": [],
         "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Let ", "annotations": []},
                     {"type": "refusal", "refusal": "me"}]},
        CALL,
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": 'a\n"'},
        RESULT,
        {"type": "custom_tool_call_output", "call_id": "c2",
         "output": [{"type": "input_text", "text": "do"}, {"type": "input_text", "text": "ne"}]},
        {"role": "assistant", "content": "It is"},
        {"role": "assistant", "content": "warm."},
        {"role": "user", "content": "b"},
    ]  # fmt: skip
    calls = [
        pb.ToolCall(id="c1", name="weather", arguments_json='{"city": "R"}'),
        pb.ToolCall(id="c2", name="patch", arguments_json='{"input": "a\\n\\""}'),
    ]
    assert turns(items, tools=[WEATHER, PATCH]) == [
        user("a"),
        assistant("Let me", reasoning="hm", tool_calls=calls),
        pb.ChatMessage(role=pb.ROLE_TOOL, content="warm", tool_call_id="c1"),
        pb.ChatMessage(role=pb.ROLE_TOOL, content="done", tool_call_id="c2"),
        assistant("It is\nwarm."),
        user("b"),
    ]


@pytest.mark.parametrize(
    "item",
    [
        {"content": [{"type": "reasoning_text", "text": "h\nm"}], "summary": []},
        {"summary": [{"type": "summary_text", "text": each} for each in "hm"]},
        {"summary": [], "encrypted_content": sealed("h\nm")},
        {"summary": [], "content": None, "encrypted_content": sealed("h\nm"), "status": None},
    ],
)
def test_thoughts_come_back_in_any_of_their_forms(item: dict[str, Any]) -> None:
    items = [ASKED, {"type": "reasoning", "id": "rs_1", **item}, CALL, RESULT]
    thinking = turns(items)[1]
    assert thinking.reasoning == "h\nm"
    assert [call.id for call in thinking.tool_calls] == ["c1"]


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        (None, "input must be a string or a list of items"),
        ([{"content": "a"}], "input[0].role is missing; send user, assistant or system"),
        ([{"role": "tool", "content": "a"}], "input[0].role must be 'user', 'assistant', "),
        (
            [ASKED, {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            "input[1].content[0].type is input_image; this model reads text parts only",
        ),
        (
            [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}],
            "input[0].content[0].type is input_file; ",
        ),
        ([{"type": "item_reference", "id": "x"}], "input[0] is an item_reference, and nothing is "),
        (
            [{"type": "web_search_call", "id": "x"}],
            "input[0].type is web_search_call; message, reasoning, function_call, ",
        ),
        (
            [ASKED, RESULT],
            "input[1].call_id is of no call before it; nothing is stored, so send the calls too",
        ),
        ([{**CALL, "call_id": ""}], "input[0].call_id is missing"),
        ([{**CALL, "name": None}], "input[0].name is missing"),
        (
            [{"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}],
            "input[0].encrypted_content was not made by this server; send the item without it",
        ),
        (
            [CALL, {**RESULT, "output": [{"type": "input_image"}]}],
            "input[1].output[0].type is input_image",
        ),
        (3, "input must be a string or a list of items"),
        ([3], "input[0] is a number, must be an object"),
    ],
)
def test_what_is_no_turn_is_refused_by_its_place(items: Any, complaint: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(items)
    assert caught.value.message.startswith(complaint)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("messages", "input"),
        ("messages[1].tool_calls[0].name", "input[1].name"),
        ("messages[1].tool_calls[1].id", "input[3].call_id"),
        ("messages[1].tool_calls[1].arguments_json", "input[3].arguments"),
        ("messages[1].tool_calls[2].arguments_json", "input[4].input"),
        ("messages[2].tool_call_id", "input[5].call_id"),
        ("messages[1].tool_calls", "input"),
    ],
)
def test_errors_of_turns_name_the_item(field: str, name: str) -> None:
    said = {"role": "assistant", "content": "x"}
    custom = {"type": "custom_tool_call", "call_id": "c3", "name": "patch", "input": "x"}
    asked = read([ASKED, CALL, said, {**CALL, "call_id": "c2"}, custom, RESULT])
    assert asked.turns.names_of(field) == {field: name}
    assert asked.turns.names_of("sampling.top_p") == {}


def test_a_turn_of_many_messages_is_put_together_once() -> None:
    """A message keeps every text that was ever set: 3 GB, where each adds to the last."""
    count = 4_000
    items = [{"role": "assistant", "content": "x" * 400}] * count
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (turn,) = turns(items)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10
    assert len(turn.content) == 401 * count - 1
