"""Tools of a request: what the template is shown, and what the output is held to."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.api.openai.parameters.models import ChatBody
from frontend.api.openai.tool_calling.tools import chat_tools
from frontend.errors import Code, RequestError
from frontend.processing.constraints.structured_output import GrammarMatcher
from frontend.processing.tool_calls.format import NO_FORMAT, ToolFormat
from frontend.processing.tool_calls.formats.hermes import HERMES
from frontend.processing.tool_calls.table import find_format
from frontend.processing.tool_calls.tool_use import ToolUse
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import EOS, MODEL
from tests.frontend.http_fakes import ScriptedService, running_http, says
from tests.frontend.processing.constraints.languages import allowed, byte_compiler, matcher, takes

COMPILER = byte_compiler()


def tool(parameters: Any = None, name: str = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def obj(**properties: Any) -> dict[str, Any]:
    names = list(properties)
    return {
        "type": "object", "properties": properties, "required": names, "additionalProperties": False
    }  # fmt: skip


def used(
    *tools: dict[str, Any],
    choice: Any = "required",
    tool_format: ToolFormat = NO_FORMAT,
    **more: Any,
) -> ToolUse:
    values = {"messages": [], "tools": list(tools), "tool_choice": choice, **more}
    return chat_tools(ChatBody.model_validate(values), values, tool_format)[0]


def named(name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def schema_of(use: ToolUse) -> str:
    assert use.constraint is not None
    return use.constraint.json_schema


async def compiled(schema_json: str) -> GrammarMatcher:
    return await matcher(COMPILER, json_schema=schema_json)


async def is_taken(schema_json: str, text: str) -> bool:
    return takes(await compiled(schema_json), text)


def call(arguments: str, name: str = "f") -> str:
    return f'[{{"name":"{name}","arguments":{arguments}}}]'


# ---- references ----

COLOR = {**obj(a={"$ref": "#/$defs/C"}), "$defs": {"C": {"enum": ["red", "blue"]}}}
COUNT = {**obj(a={"$ref": "#/$defs/C"}), "$defs": {"C": {"type": "integer"}}}
OLDER = {**obj(a={"$ref": "#/definitions/C"}), "definitions": {"C": {"const": 7}}}
SAME = obj(a={"enum": ["x"]}, b={"$ref": "#/properties/a"})
CHAIN = obj(next={"anyOf": [{"$ref": "#"}, {"type": "null"}]})


async def test_references_lead_into_their_own_tool() -> None:
    tools = [
        tool(each, name)
        for name, each in zip("pqrst", (COLOR, COUNT, OLDER, SAME, CHAIN), strict=True)
    ]
    schema = schema_of(used(*tools))
    for name, arguments, is_right in (
        ("p", '{"a":"red"}', True),
        ("p", '{"a":5}', False),
        ("q", '{"a":5}', True),
        ("q", '{"a":"red"}', False),
        ("r", '{"a":7}', True),
        ("s", '{"a":"x","b":"x"}', True),
        ("s", '{"a":"x","b":"y"}', False),
        ("t", '{"next":{"next":null}}', True),
        ("t", '{"next":[]}', False),
    ):
        assert await is_taken(schema, call(arguments, name)) == is_right, (name, arguments)


async def test_data_and_names_that_look_like_keywords_stay() -> None:
    parameters = obj(**{"$ref": {"enum": [{"$ref": "#"}]}, "$id": {"const": {"$anchor": "a"}}})
    schema = schema_of(used(tool(parameters)))
    assert await is_taken(schema, call('{"$ref":{"$ref":"#"},"$id":{"$anchor":"a"}}'))


async def test_remarks_do_not_count_and_are_left_to_the_template() -> None:
    """Tools of 100,000 characters, most of them descriptions, can be required."""
    remark = {"title": "t", "description": "d" * 700, "$comment": "c"}
    kinds = {"enum": [{"title": "x"}], **remark}
    parameters = {**obj(title=kinds, description={"type": "null", **remark}), **remark}
    tools = [tool(parameters, f"f{index}") for index in range(50)]
    use = used(*tools)
    assert len(use.tools_json) > 100_000
    assert json.loads(use.tools_json) == tools
    arguments = '{"title":{"title":"x"},"description":null}'
    assert await is_taken(schema_of(use), call(arguments, "f49"))
    assert not await is_taken(schema_of(use), call('{"title":{}}', "f49"))


async def test_an_id_at_the_root_is_the_tools_own() -> None:
    parameters = {
        **COLOR,
        "$id": "http://x/tool",
        "$schema": "http://json-schema.org/draft-07/schema#",
    }
    parameters["properties"] = {"a": {"$ref": "http://x/tool#/$defs/C"}}
    assert await is_taken(schema_of(used(tool(parameters))), call('{"a":"blue"}'))


@pytest.mark.parametrize(
    "key", ["$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef"]
)
def test_what_cannot_be_moved_is_refused_by_name(key: str) -> None:
    with pytest.raises(RequestError, match=rf"has \{key}") as caught:
        used(tool(name="a"), tool(obj(a={key: "x"}), name="b"))
    assert caught.value.field == "tools[1].function.parameters"
    used(tool(obj(a={key: "x"})), choice=named())  # stands alone


def test_one_dialect_at_a_time() -> None:
    one, two = ({"$schema": f"http://json-schema.org/draft-0{n}/schema#"} for n in (6, 7))
    assert json.loads(schema_of(used(tool(one), tool(one, "g"))))["$schema"] == one["$schema"]
    with pytest.raises(RequestError, match="different"):
        used(tool(one), tool(two, "g"))


_REFS = st.sampled_from(
    ["#", "#/$defs/A", "#/$defs/B", "#/definitions/A", "#/properties/a", "#/$defs/a~1b"]
)
_LEAF = st.sampled_from(
    [{"type": "integer"}, {"enum": ["red", "blue", {"$ref": "#"}]}, {"const": 7}, {"type": "null"},
     {"type": "string", "maxLength": 2}]
)  # fmt: skip
_PART = st.recursive(
    _LEAF | st.builds(lambda ref: {"$ref": ref}, _REFS),
    lambda inner: (
        st.builds(lambda items: {"type": "array", "items": items, "maxItems": 2}, inner)
        | st.builds(
            lambda some: obj(**some),
            st.dictionaries(st.sampled_from(["a", "$ref", "properties"]), inner, max_size=2),
        )
        | st.builds(lambda some: {"anyOf": [*some, {"type": "null"}]}, st.lists(inner, max_size=2))
    ),
    max_leaves=4,
)
_PARAMETERS = st.builds(
    lambda a, b, more: {
        **obj(a=a, b=b),
        "$defs": {"A": more[0], "B": more[1], "a/b": more[2]},
        "definitions": {"A": more[3]},
    },
    _PART,
    _PART,
    st.tuples(_PART, _PART, _LEAF, _PART),
)


@settings(max_examples=40, deadline=None)
@given(parameters=_PARAMETERS, seed=st.integers(0, 2**32))
def test_required_with_one_tool_is_the_language_of_the_call_by_name(
    parameters: dict[str, Any], seed: int
) -> None:
    """Walked together, a byte at a time, beside another tool with the same names."""
    by_name = schema_of(used(tool(parameters), choice=named()))
    required = schema_of(used(tool(parameters), tool(COLOR, "other")))
    try:
        alone = asyncio.run(compiled(by_name))
    except RequestError:
        with pytest.raises(RequestError):  # no value fits: only the other tool can be called
            asyncio.run(_walked_to(required, '[{"name":"f","arguments":{'))
        return
    asyncio.run(_compare(alone, required, seed))


async def _walked_to(schema_json: str, text: str) -> GrammarMatcher:
    each = await compiled(schema_json)
    for byte in text.encode():
        if byte not in allowed(each):
            raise RequestError(Code.INVALID_ARGUMENT, "not in the language", reason="TEST")
        each.accept(byte)
    return each


async def _compare(alone: GrammarMatcher, required: str, seed: int) -> None:
    inside = await _walked_to(required, '[{"name":"f","arguments":')
    blanks, choose = {ord(" "), ord("\n"), ord("\r")}, random.Random(seed)
    for _ in range(60):
        may = allowed(alone)
        if EOS in may:
            assert ord("}") in allowed(inside)
            return
        # Before the value, the list has blanks of its own.
        assert may - blanks == allowed(inside) - blanks
        byte = choose.choice(sorted(may - blanks))
        try:
            alone.accept(byte)
        except RequestError:  # nothing can follow
            with pytest.raises(RequestError):
                inside.accept(byte)
            return
        inside.accept(byte)


# ---- strict ----


async def test_strict_tools_are_closed_and_others_open() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    for strict, is_open in ((True, False), (False, True), (None, True)):
        for choice, said in (("required", call('{"a":{"x":1}}')), (named(), '{"a":{"x":1}}')):
            schema = schema_of(used(tool(parameters, strict=strict), choice=choice))
            assert await is_taken(schema, said) == is_open


# ---- choices ----

TOOLS = [tool(name="f"), tool(name="g"), tool(name="h")]


def some(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


async def test_allowed_tools_are_the_only_ones() -> None:
    use = used(*TOOLS, choice=some("required", "h", "f"))
    assert json.loads(use.tools_json) == [TOOLS[0], TOOLS[2]]
    assert await is_taken(schema_of(use), call("{}", "h"))
    assert not await is_taken(schema_of(use), call("{}", "g"))
    use = used(*TOOLS, choice=some("auto", "g"), tool_format=HERMES)
    assert (json.loads(use.tools_json), use.constraint) == ([TOOLS[1]], None)
    for name, num_calls in (("g", 1), ("f", 0)):
        reader = use.reader()
        reader.push(f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>')
        assert reader.num_calls == num_calls


@pytest.mark.parametrize(
    "choice",
    [
        some("auto"),
        some("auto", "x"),
        some("sometimes", "f"),
        {"type": "allowed_tools"},
        {"type": "custom", "function": {"name": "f"}},
        named("x"),
        {"type": "function"},
        "any",
        5,
    ],
)
def test_a_choice_that_is_none_is_refused(choice: Any) -> None:
    with pytest.raises(RequestError) as caught:
        used(*TOOLS, choice=choice)
    assert caught.value.field == "tool_choice"


# ---- the older form ----

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1.10}}</tool_call>'
FUNCTIONS = [{"name": "f", "parameters": {"type": "object"}}, {"name": "g"}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [None, "auto", {"name": "f"}])
async def test_functions_are_answered_in_their_own_form(stream: bool, choice: Any) -> None:
    said = '{"a": 1.10}' if isinstance(choice, dict) else CALL
    service = ScriptedService([pb.Delta(text=said[:20], token_ids=[1]), says(said[20:])])
    service.tool_format = NO_FORMAT if isinstance(choice, dict) else HERMES
    messages: list[Any] = [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "2"},
    ]
    async with running_http(service) as http:
        create: Any = http.client.chat.completions.create
        more = {} if choice is None else {"function_call": choice}
        answer = await create(
            model=MODEL, messages=messages, functions=FUNCTIONS, stream=stream, **more
        )
        if stream:
            choices = [chunk.choices[0] async for chunk in answer]
            calls = [each.delta.function_call for each in choices if each.delta.function_call]
            name, reason = calls[0].name, choices[-1].finish_reason
            arguments = "".join(each.arguments for each in calls)
        else:
            [choice] = answer.choices
            name, arguments = (
                choice.message.function_call.name,
                choice.message.function_call.arguments,
            )
            reason = choice.finish_reason
            assert (choice.message.content, choice.message.tool_calls) == (None, None)
    assert (name, arguments, reason) == ("f", '{"a": 1.10}', "function_call")
    [asked] = service.requests
    shown = [each["function"] for each in json.loads(asked.tools_json)]
    assert shown == FUNCTIONS
    first, second = asked.messages
    assert first.tool_calls[0] == pb.ToolCall(name="f", arguments_json="{}")
    assert (second.role, second.content) == (pb.ROLE_TOOL, "2")


@pytest.mark.parametrize("choice", ["required", {"name": "x"}, {}, 5])
def test_a_bad_function_call_is_refused(choice: Any) -> None:
    with pytest.raises(RequestError) as caught:
        used(functions=FUNCTIONS, function_call=choice)
    assert caught.value.field == "function_call"


# ---- through HTTP ----


async def test_the_models_own_form_is_read_with_its_tags_and_ids() -> None:
    said = '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "aB3dE6gH9"}]'
    service = ScriptedService([pb.Delta(text=said[:20], token_ids=[1]), says(said[20:])])
    service.tool_format = find_format("mistral", "", {"[TOOL_CALLS]": 5}, [])
    async with running_http(service) as http:
        create: Any = http.client.chat.completions.create
        answer = await create(
            model=MODEL, messages=[{"role": "user", "content": "a"}], tools=[tool()]
        )
    assert service.requests[0].request.output.kept_tokens == ["[TOOL_CALLS]"]
    [call] = answer.choices[0].message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("aB3dE6gH9", "f", "{}")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_list_of_calls_is_calls(stream: bool) -> None:
    said = '[{"name":"f","arguments":{}},\n{"name":"g","arguments":{"a'
    parts = [pb.Delta(text=said[:25], token_ids=[1]), says(said[25:], pb.FINISH_REASON_LENGTH)]
    service = ScriptedService(parts)
    service.tool_format = NO_FORMAT
    async with running_http(service) as http:
        create: Any = http.client.chat.completions.create
        answer = await create(
            model=MODEL,
            messages=[{"role": "user", "content": "a"}],
            tools=TOOLS,
            tool_choice="required",
            stream=stream,
        )
        if stream:
            choices = [chunk.choices[0] async for chunk in answer]
            deltas = [choice.delta for choice in choices]
            reason = choices[-1].finish_reason
        else:
            [choice] = answer.choices
            deltas, reason = [choice.message], choice.finish_reason
    calls = [each for delta in deltas for each in delta.tool_calls or ()]
    assert [(each.function.name, each.function.arguments) for each in calls] == [
        ("f", "{}"),
        ("g", '{"a'),
    ]
    assert not any(delta.content for delta in deltas)
    assert reason == "length"
