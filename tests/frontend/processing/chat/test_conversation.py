"""Conversations: what a template gets of them, and what it may do."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from frontend.errors import Code, RequestError
from frontend.processing import preprocess
from frontend.processing.chat.conversation import Conversation, template_kwargs
from frontend.processing.chat.conversation import conversation as read
from frontend.processing.tokenizer import Tokenizer
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.conftest import byte_level_backend, write_folder
from tests.frontend.fakes import MODEL, FakeEngine, backend, group

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def conversation() -> pb.ChatRequest:
    return pb.ChatRequest(
        messages=[
            {"role": pb.ROLE_SYSTEM, "content": "S"},
            {"role": pb.ROLE_USER, "content": "U"},
            {
                "role": pb.ROLE_ASSISTANT,
                "tool_calls": [{"id": "c1", "name": "add", "arguments_json": '{"a": [1, 2]}'}],
            },
            {"role": pb.ROLE_TOOL, "content": "3", "tool_call_id": "c1"},
        ],
        tools_json=json.dumps([TOOL]),
    )


def test_turns_are_as_templates_know_them() -> None:
    assert read(conversation()).turns == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "add", "arguments": {"a": [1, 2]}},
                }
            ],
        },
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]
    assert read(conversation()).tools == [TOOL]
    for text in ("", "[]"):
        assert (
            read(pb.ChatRequest(messages=[{"role": pb.ROLE_USER}], tools_json=text)).tools is None
        )


BAD: list[tuple[str, Callable[[pb.ChatRequest], object]]] = [
    ("messages[1].tool_calls", lambda r: r.messages[1].tool_calls.add(name="add")),
    ("messages[2].tool_calls[0].name", lambda r: r.messages[2].tool_calls[0].ClearField("name")),
    (
        "messages[2].tool_calls[0].name",
        lambda r: setattr(r.messages[2].tool_calls[0], "name", "x" * 257),
    ),
    (
        "messages[2].tool_calls[0].id",
        lambda r: setattr(r.messages[2].tool_calls[0], "id", "x" * 257),
    ),
    (
        "messages[2].tool_calls[0].arguments_json",
        lambda r: setattr(r.messages[2].tool_calls[0], "arguments_json", " " * 262_145),
    ),
    (
        "messages[2].tool_calls",
        lambda r: r.messages[2].tool_calls.extend([pb.ToolCall(name="x")] * 128),
    ),
    ("messages[3].tool_call_id", lambda r: setattr(r.messages[3], "tool_call_id", "x" * 257)),
    ("tools_json", lambda r: setattr(r, "tools_json", "{}")),
    ("tools_json", lambda r: setattr(r, "tools_json", "[1]")),
    ("tools_json", lambda r: setattr(r, "tools_json", "[" * 9000)),
    ("tools_json", lambda r: setattr(r, "tools_json", json.dumps([{}] * 129))),
    ("tools_json", lambda r: setattr(r, "tools_json", " " * 262_145)),
    ("template_kwargs_json", lambda r: setattr(r, "template_kwargs_json", '{"tools": []}')),
    ("template_kwargs_json", lambda r: setattr(r, "template_kwargs_json", '{"self": 1}')),
    ("messages", lambda r: setattr(r.messages[1], "content", "x" * 256 * 64)),
    ("continue_final_message", lambda r: setattr(r, "continue_final_message", True)),
]


@pytest.mark.parametrize(("field", "change"), BAD)
async def test_a_bad_field_is_named(field: str, change: Callable[[pb.ChatRequest], object]) -> None:
    service, request = Service(model=MODEL, version="1"), conversation()
    service.open(backend(FakeEngine()))
    change(request)
    with pytest.raises(RequestError) as caught:
        [event async for event in service.chat(request)]
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, field)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("final", "asks", "complaint"),
    [
        ({"role": pb.ROLE_USER}, None, "of the assistant"),
        ({"role": pb.ROLE_ASSISTANT, "tool_calls": [{"name": "f"}]}, None, "without tool calls"),
        ({"role": pb.ROLE_ASSISTANT}, True, "asks for another"),
    ],
)
def test_there_is_a_turn_to_go_on_with(final: Any, asks: bool | None, complaint: str) -> None:
    chat = pb.ChatRequest(
        messages=[{"role": pb.ROLE_USER}, final],
        continue_final_message=True,
        add_generation_prompt=asks,
    )
    with pytest.raises(RequestError, match=complaint) as caught:
        read(chat)
    assert caught.value.field == "continue_final_message"


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ('{"a": 1.5}', {"a": 1.5}),
        ("", {}),
        ("null", {}),
        ('{\n"c', '{\n"c'),
        ("[1]", "[1]"),
        ("5", "5"),
        ('{"x": NaN}', '{"x": NaN}'),
        ('{"x": 1e999}', '{"x": 1e999}'),
        ('{"a":' * 9000, '{"a":' * 9000),
    ],
)
def test_arguments_that_are_no_object_stay_text(text: str, given: Any) -> None:
    request = conversation()
    request.messages[2].tool_calls[0].arguments_json = text
    [call] = read(request).turns[2]["tool_calls"]
    assert call["function"]["arguments"] == given


def test_no_argument_of_the_template_s_caller_can_be_set() -> None:
    functions = (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
    names = {name for each in functions for name in inspect.signature(each).parameters}
    for name in names - {"documents", "kwargs"}:
        with pytest.raises(RequestError, match="may not set"):
            template_kwargs(json.dumps({name: 1}))


async def test_tools_reach_the_template() -> None:
    engine, service, request = FakeEngine(), Service(model=MODEL, version="1"), conversation()
    service.open(backend(engine))
    request.request.stop_conditions.max_new_tokens = 2
    request.tools_json = json.dumps([{"name": "add"}, {"name": "sub"}])
    [event async for event in service.chat(request)]
    [sent] = engine.requests.values()
    assert bytes(sent.prompt_ids) == b"s:Su:Ua:t:3+add+sub"


# ---- templates ----


def tokenizer_with(folder: Path, template: str) -> Tokenizer:
    write_folder(folder, byte_level_backend())
    (folder / "chat_template.jinja").write_text(template)
    loaded = Tokenizer.load(folder)
    assert loaded is not None
    return loaded


def said(tokenizer: Tokenizer, kwargs: dict[str, Any], tools: list[Any] | None = None) -> str:
    turns = [{"role": "user", "content": "hi"}]
    ids = tokenizer.render_chat(Conversation(turns=turns, tools=tools, template_kwargs=kwargs))
    return tokenizer.decode(ids, keep_special_tokens=True)


def test_a_real_template_sees_tools_and_calls(tmp_path: Path) -> None:
    template = (
        "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "({{ c.function.name }} {{ c.function.arguments | tojson }}){% endfor %}{% endfor %}"
    )
    tokenizer = tokenizer_with(tmp_path, template)
    ids = tokenizer.render_chat(read(conversation()))
    assert tokenizer.decode(ids, True) == '[add]SU(add {"a": [1, 2]})3'


BY_TYPE = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{% set a = c.function.arguments %}"
    "({% if a is string %}{{ a }}{% else %}{{ a | tojson }}{% endif %}){% endfor %}{% endfor %}"
)
ITEMS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}("
    "{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}){% endfor %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(("template", "said"), [(BY_TYPE, '({"a)'), (ITEMS, "()")])
async def test_a_call_that_was_cut_off_is_taken_back(
    template: str, said: str, tmp_path: Path
) -> None:
    request = conversation()
    request.messages[2].tool_calls[0].arguments_json = '{"a'
    request.tools_json = ""
    tokenizer = tokenizer_with(tmp_path, template)
    info = group(vocab_size=tokenizer.vocab_size)
    ids = await preprocess.chat_ids(backend(FakeEngine(), tokenizer=tokenizer, info=info), request)
    assert tokenizer.decode(ids, True) == said


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ strftime_now.__globals__['__builtins__'] }}",
    "{{ (messages | attr('__class__')).__base__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ messages.append({'role': 'x'}) }}",
    "{{ messages.clear() }}",
    "{% for i in range(1000000000) %}x{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_hostile_template_gets_nowhere(template: str, tmp_path: Path) -> None:
    """transformers renders in jinja2's ImmutableSandboxedEnvironment, without a loader."""
    with pytest.raises((jinja2.TemplateError, ValueError, TypeError, AttributeError)):
        said(tokenizer_with(tmp_path, template), {})


def test_what_callers_send_is_never_a_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, "{{ messages[0].content }}{{ name }}")
    turns = [{"role": "user", "content": "{{ 7 * 7 }}"}]
    ids = tokenizer.render_chat(Conversation(turns=turns, template_kwargs={"name": "{% raw %}"}))
    assert tokenizer.decode(ids) == "{{ 7 * 7 }}{% raw %}"
