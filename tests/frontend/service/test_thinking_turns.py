"""Thoughts and calls together: each format, budget, stop and number of samples, cut everywhere.

The model says thoughts that quote a call, then text, a call and more text.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from typing import Any

import pytest

from frontend.processing.tool_calls.events import Arguments, CallBegun
from frontend.processing.tool_calls.events import Text as Content
from frontend.processing.tool_calls.table import FORMATS
from frontend.processing.tool_calls.tool_use import tool_use
from frontend.processing.tool_calls.tools import Tool, ToolChoice
from frontend.service.service import Service
from frontend.service.turns import Call, Finished, Reasoning, TurnDelta, WholeTurn, turn_events
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.played_service import played_service
from tests.frontend.processing.chat import templates

TOKENIZER = templates.tokenizer_of(templates.CHATML + "{% if opens %}<think>\n{% endif %}")
[OPEN], [CLOSE], [END], [GAP] = (
    TOKENIZER.encode(text) for text in ("<think>", "</think>", "<|im_end|>", "\n")
)
CALLS = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
    "qwen3_coder": (
        "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
    ),
    "glm45": "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
}
SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "additionalProperties": False,
}
TOOLS = {"f": Tool(name="f", parameters=SCHEMA, sent={"name": "f"}, field="tools[0]")}


@dataclasses.dataclass(frozen=True)
class Script:
    """What the model says.

    Attributes:
        opens: the prompt has opened the thoughts.
        budget: tokens of thoughts that are let through.
    """

    call: str
    opens: bool
    budget: int | None = None

    @functools.cached_property
    def thoughts(self) -> list[int]:
        return TOKENIZER.encode(f"so {self.call} no")[: self.budget]

    @functools.cached_property
    def answer(self) -> list[int]:
        return TOKENIZER.encode(f"well, {self.call} then stop")

    @functools.cached_property
    def tokens(self) -> list[int]:
        return [*([] if self.opens else [OPEN]), *self.thoughts, CLOSE, GAP, *self.answer, END]

    @functools.cached_property
    def without_budget(self) -> list[int]:
        return dataclasses.replace(self, budget=None).tokens

    def __call__(self, output: list[int]) -> int:
        whole = self.without_budget
        place = len(output)
        if CLOSE in output:
            place += whole.index(CLOSE) - output.index(CLOSE)
        return whole[min(place, len(whole) - 1)]


async def turns(
    service: Service, script: Script, name: str, **fields: Any
) -> tuple[dict[int, WholeTurn], pb.Usage]:
    chat = pb.ChatRequest(
        messages=[{"role": pb.ROLE_USER, "content": "hi"}],
        request=fields,
        template_kwargs_json='{"opens": true}' if script.opens else "",
    )
    if script.budget is not None:
        chat.reasoning.max_tokens = script.budget
    found: dict[int, WholeTurn] = {}
    usage = pb.Usage()
    reader = FORMATS[name].reader
    async for event in turn_events(service.chat(chat), lambda: reader(TOOLS)):
        match event:
            case TurnDelta():
                found.setdefault(event.index, WholeTurn()).add(event)
                kinds = [isinstance(each, Reasoning) for each in event.events]
                assert kinds == sorted(kinds, reverse=True), "thoughts come first"
            case Finished():
                usage = event.usage
    return found, usage


def parts(name: str, text: str) -> list[Content | Call]:
    """What a reader makes of a text that comes at once."""
    reader = FORMATS[name].reader(TOOLS)
    made: list[Content | Call] = []
    for event in [*reader.push(text), *reader.flush()]:
        match event:
            case Content(more):
                if made and isinstance(made[-1], Content):
                    more = made.pop().text + more
                made.append(Content(more))
            case CallBegun(_, called, call_id):
                made.append(Call(called, call_id, ""))
            case Arguments(_, more):
                last = made.pop()
                assert isinstance(last, Call)
                made.append(dataclasses.replace(last, arguments=last.arguments + more))
    return made


# The default run takes each format with each budget, and both beginnings with either.
SCRIPTS = [
    pytest.param(name, opens, budget, marks=() if opens == number % 2 else pytest.mark.grid)
    for number, (name, budget) in enumerate(itertools.product(CALLS, (None, 0, 1)))
    for opens in (False, True)
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "opens", "budget"), SCRIPTS)
async def test_every_cut(name: str, opens: bool, budget: int | None) -> None:
    script = Script(CALLS[name], opens, budget)
    num_before = len(script.tokens) - len(script.answer) - 1
    async with played_service(TOKENIZER, script) as (service, _):
        for cut in range(1, len(script.tokens) + 1):
            found, usage = await turns(
                service, script, name, n=2, stop_conditions={"max_new_tokens": cut}
            )
            thought = script.tokens[: min(cut, num_before - 2)][not opens :]
            said = script.answer[: max(0, cut - num_before)]
            for turn in (found[0], found[1]):
                assert turn.reasoning == TOKENIZER.decode(thought).rstrip("\n")
                assert turn.parts == parts(name, TOKENIZER.decode(said))
                assert turn.ended is not None
                assert turn.ended.num_calls == len(turn.calls)
            assert usage.reasoning_tokens == 2 * min(cut, num_before - 1)
    last = found[0]
    assert [Content("well, "), *last.calls, Content("then stop")] == last.parts
    [call] = last.calls
    assert (call.name, call.arguments) == ("f", '{"x": 1}')


@pytest.mark.parametrize("name", CALLS)
async def test_a_stop_is_one_of_the_answer_alone(name: str) -> None:
    script = Script(CALLS[name], True)
    async with played_service(TOKENIZER, script) as (service, _):
        found, _ = await turns(service, script, name, n=2, stop_conditions={"stop": ["no", "stop"]})
        for turn in found.values():
            assert turn.reasoning == f"so {CALLS[name]} no"
            assert [each.arguments for each in turn.calls] == ['{"x": 1}']
            assert turn.content == "well, then", "blanks beside calls are dropped"
        found, _ = await turns(service, script, name, stop_conditions={"stop": ["tool_call>"]})
    assert found[0].reasoning == f"so {CALLS[name]} no"
    assert (found[0].content, found[0].calls) == ("well, <", [])


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_is_asked_for_comes_behind_the_thoughts(
    name: str, budget: int | None
) -> None:
    """In the model's own form, though it says something else."""
    script = Script(CALLS[name], False, budget)
    use = tool_use(
        [*TOOLS.values()], ToolChoice(mode="required", names=("f",)), FORMATS[name], parallel=False
    )
    chat = pb.ChatRequest(messages=[{"role": pb.ROLE_USER, "content": "hi"}], request={"n": 2})
    if budget is not None:
        chat.reasoning.max_tokens = budget
    use.apply(chat)
    found: dict[int, WholeTurn] = {}
    async with played_service(TOKENIZER, script) as (service, _):
        async for event in turn_events(service.chat(chat), use.reader):
            if isinstance(event, TurnDelta):
                found.setdefault(event.index, WholeTurn()).add(event)
    for turn in found.values():
        assert turn.reasoning == TOKENIZER.decode(script.thoughts).rstrip("\n")
        [call] = turn.calls
        assert turn.content == ""
        assert call.name == "f"
        assert all(isinstance(x, int) for x in json.loads(call.arguments).values())


@pytest.mark.parametrize("opens", [False, True])
async def test_calls_of_strict_tools_keep_to_their_schemas(opens: bool) -> None:
    """What the thoughts quote does not, and the model need not call."""
    wrong = CALLS["hermes"].replace("1", '"no"')
    script = Script(wrong, opens)
    strict = dataclasses.replace(TOOLS["f"], strict=True)
    form = FORMATS["hermes"].with_tokens({}, ["<tool_call>"])
    use = tool_use([strict], ToolChoice(mode="auto", names=("f",)), form)
    chat = pb.ChatRequest(
        messages=[{"role": pb.ROLE_USER, "content": "hi"}],
        template_kwargs_json='{"opens": true}' if opens else "",
    )
    use.apply(chat)
    turn = WholeTurn()
    async with played_service(TOKENIZER, script) as (service, engine):
        async for event in turn_events(service.chat(chat), use.reader):
            if isinstance(event, TurnDelta):
                turn.add(event)
        assert engine._group.workers.num_triggered == 1, "no draw waited for the tag"
    assert turn.reasoning == f"so {wrong} no"
    assert turn.content.startswith("well,")
    [call] = turn.calls
    assert isinstance(json.loads(call.arguments)["x"], int)


def test_strict_tools_beside_another_language_are_as_others() -> None:
    strict = dataclasses.replace(TOOLS["f"], strict=True)
    form = FORMATS["hermes"].with_tokens({}, ["<tool_call>"])
    use = tool_use([strict], ToolChoice(mode="auto", names=("f",)), form)
    for request in (
        {"constraint": {"regex": "a"}},
        {"sampling": {"bad_words": ["x"]}},
        {"stop_conditions": {"min_new_tokens": 9}},
    ):
        chat = pb.ChatRequest(request=request)
        use.apply(chat)
        assert chat.request.constraint == pb.GenerateRequest(**request).constraint
