"""Turns in an envelope: thoughts, calls, languages and budgets, cut everywhere."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import random
from typing import Any

import pytest

from frontend.processing.tool_calls.events import Text
from frontend.processing.tool_calls.tool_use import NO_TOOLS, ToolUse, tool_use
from frontend.processing.tool_calls.tools import Mode, Tool, ToolChoice
from frontend.service.service import Service
from frontend.service.turns import Call, Finished, Reasoning, TurnDelta, WholeTurn, turn_events
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.played_service import played_service
from tests.frontend.processing.chat import templates
from tests.frontend.processing.thoughts.harmony import (
    END_IDS,
    FINAL,
    IDS,
    NEXT,
    PREAMBLE,
    THOUGHTS,
    TOKENIZER,
    header,
)

SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}
F = Tool(name="f", parameters=SCHEMA, sent={"name": "f"}, field="tools[0]")
CALL = f'{header("f")}{{"x": 1}}<|call|>'
TURN = f"{THOUGHTS}so, f{NEXT}{PREAMBLE}Let me see.{NEXT}{THOUGHTS}and{NEXT}{CALL}"
ANSWER = f"{THOUGHTS}so, no call{NEXT}{FINAL}yes, stop<|return|>"


@functools.cache
def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text)


@dataclasses.dataclass(frozen=True)
class Model:
    """Says a text as far as it may; where it was made to say something else, it goes on with what
    it would say behind that, found by its last tokens."""

    text: str

    def __call__(self, output: list[int]) -> int:
        tokens = encode(self.text)

        def common(place: int) -> int:
            """How many of the last tokens are those before a place of the text."""
            if not output or not place or output[-1] != tokens[place - 1]:
                return 0
            pairs = zip(reversed(output), reversed(tokens[:place]), strict=False)
            return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

        return tokens[max(range(len(tokens)), key=common)]


def use_of(mode: Mode, *tools: Tool, **more: Any) -> ToolUse:
    names = tuple(tool.name for tool in tools)
    return tool_use(tools, ToolChoice(mode=mode, names=names), TOKENIZER.tool_format, **more)


async def turns(
    service: Service, use: ToolUse = NO_TOOLS, *, reasoning: Any = None, **fields: Any
) -> tuple[dict[int, WholeTurn], pb.Usage, dict[int, list[int]]]:
    chat = pb.ChatRequest(
        messages=[{"role": pb.ROLE_USER, "content": "hi"}], request=fields, reasoning=reasoning
    )
    use.apply(chat)
    found: dict[int, WholeTurn] = {}
    tokens: dict[int, list[int]] = {}
    usage = pb.Usage()
    async for event in turn_events(service.chat(chat), use.reader):
        match event:
            case TurnDelta():
                found.setdefault(event.index, WholeTurn()).add(event)
                tokens.setdefault(event.index, []).extend(event.message.token_ids)
            case Finished():
                usage = event.usage
    return found, usage, tokens


def written(tokens: list[int]) -> str:
    return TOKENIZER.decode(tokens, True)


async def test_a_turn_with_all() -> None:
    async with played_service(TOKENIZER, Model(TURN), END_IDS) as (service, _):
        found, usage, tokens = await turns(service, use_of("auto", F), n=2)
    for index, turn in found.items():
        assert turn.reasoning == "so, f\nand"
        assert turn.content == "Let me see."
        call = Call("f", "", '{"x": 1}')
        thoughts = Reasoning("so, f"), Reasoning("\nand")
        assert turn.pieces == [thoughts[0], Text("Let me see."), thoughts[1], call]
        assert turn.ended is not None
        assert turn.ended.reason == pb.FINISH_REASON_EOS, "the call's end is an end token"
        assert written(tokens[index]) == TURN
    num_thoughts = len(TOKENIZER.encode(f"{THOUGHTS}so, f{NEXT}{THOUGHTS}and<|end|>"))
    assert usage.reasoning_tokens == 2 * num_thoughts


async def test_an_answer_without_tools() -> None:
    async with played_service(TOKENIZER, Model(ANSWER), END_IDS) as (service, _):
        found, _, _ = await turns(service)
        stopped, _, _ = await turns(service, stop_conditions={"stop": ["no", "stop"]})
        silent, _, _ = await turns(service, reasoning={"leave_out": True})
    assert (found[0].reasoning, found[0].content) == ("so, no call", "yes, stop")
    assert (stopped[0].reasoning, stopped[0].content) == ("so, no call", "yes, ")
    assert (silent[0].reasoning, silent[0].content) == ("", "yes, stop")


@pytest.mark.slow
async def test_every_cut() -> None:
    tokens, use = TOKENIZER.encode(TURN), use_of("auto", F)
    async with played_service(TOKENIZER, Model(TURN), END_IDS) as (service, _):
        whole, _, _ = await turns(service, use)
        for cut in range(1, len(tokens)):
            found, _, said = await turns(service, use, stop_conditions={"max_new_tokens": cut})
            [turn] = found.values()
            assert said[0] == tokens[:cut]
            assert whole[0].reasoning.startswith(turn.reasoning)
            text = written(tokens[:cut])
            if "to=functions" not in text:
                assert whole[0].content.startswith(turn.content)
            elif "<|message|>{" in text and not turn.calls:  # as other forms have it
                assert turn.content.removeprefix("Let me see.").lstrip("\n") in CALL
            for call in turn.calls:
                assert call == whole[0].calls[0]


LANGUAGES: dict[str, tuple[dict[str, Any], str]] = {
    "regex": ({"regex": "(yes|no), [a-z]+"}, "yes, stop"),
    "choice": ({"grammar": 'start: "no" | "yes, st"'}, "yes, st"),
    "schema": ({"json_schema": '{"enum": ["a"]}'}, '"a"'),
}


@pytest.mark.parametrize("budget", [None, 0, 2])
@pytest.mark.parametrize("says", [ANSWER, TURN, f"{FINAL}yes, stop<|return|>"])
@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_language_stands_in_the_final_channel(
    language: str, says: str, budget: int | None
) -> None:
    """Behind the thoughts that the model may have, whatever else it would say."""
    constraint, text = LANGUAGES[language]
    reasoning = {} if budget is None else {"max_tokens": budget}
    async with played_service(TOKENIZER, Model(says), END_IDS) as (service, engine):
        found, _, tokens = await turns(service, reasoning=reasoning, constraint=constraint, n=2)
        num_triggered = engine._group.workers.num_triggered
    for index, turn in found.items():
        thinks = says.startswith(THOUGHTS)
        own = TOKENIZER.encode(says.partition("<|message|>")[2].partition("<|end|>")[0])
        thoughts = TOKENIZER.decode(own[:budget]) if thinks else ""
        before = f"{THOUGHTS}{thoughts}{NEXT}{FINAL}" if thinks else FINAL
        assert written(tokens[index]).removesuffix("<|return|>") == before + turn.content
        assert turn.reasoning == thoughts
        if says != TURN:
            assert turn.content == text
    # With no budget no draw waited for the end of the thoughts.
    assert num_triggered == (2 if thinks and budget is None else 0)


@pytest.mark.parametrize("budget", [None, 0, 2])
@pytest.mark.parametrize("says", [TURN, ANSWER, CALL])
@pytest.mark.parametrize("mode", ["required", "named"])
async def test_a_call_that_is_asked_for(mode: Mode, says: str, budget: int | None) -> None:
    reasoning = {} if budget is None else {"max_tokens": budget}
    use = use_of(mode, F)
    async with played_service(TOKENIZER, Model(says), END_IDS) as (service, _):
        found, _, tokens = await turns(
            service, use, reasoning=reasoning, n=2, stop_conditions={"max_new_tokens": 150}
        )
    for index, turn in found.items():
        assert turn.ended is not None
        [call] = turn.calls
        assert (turn.content, call.name) == ("", "f")
        own = TOKENIZER.encode(says.partition("<|message|>")[2].partition("<|end|>")[0])
        thinks = says.startswith(THOUGHTS)
        thoughts = TOKENIZER.decode(own[:budget]) if thinks else ""
        assert turn.reasoning == thoughts
        before = f"{THOUGHTS}{thoughts}{NEXT}" if thinks else ""
        assert written(tokens[index]).startswith(f"{before}{header('f')}{call.arguments}")
        if turn.ended.reason == pb.FINISH_REASON_EOS:
            assert written(tokens[index]).endswith("}<|call|>")
            assert isinstance(json.loads(call.arguments)["x"], int)
        if says != ANSWER:
            assert turn.ended.reason == pb.FINISH_REASON_EOS
            assert call.arguments == '{"x": 1}'


RECIPIENT_FIRST = ' to=functions.f<|channel|>commentary json<|message|>{"x": "no"}<|call|>'
WRONG = {
    "behind thoughts": TURN.replace("1", '"no"'),
    "at once": CALL.replace("1", '"no"'),
    "to a name that is none": TURN.replace("functions.f", "functions.g"),
    "its recipient before its channel": f"{THOUGHTS}so{NEXT}{RECIPIENT_FIRST}",
    "the same at once": RECIPIENT_FIRST,
    "without a type": f"{THOUGHTS}so{NEXT}{RECIPIENT_FIRST}".replace(" json", ""),
    "the same without thoughts": RECIPIENT_FIRST.replace(" json", ""),
    "in the channel of thoughts": f"{THOUGHTS}so{NEXT}{CALL}".replace("commentary", "analysis"),
    "without a start": f"{THOUGHTS}so<|end|>{CALL}".replace("1", '"no"'),
    "within an answer": f"{FINAL}so{CALL}".replace("1", '"no"'),
}


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("name", WRONG)
async def test_calls_of_strict_tools_keep_to_their_schemas(name: str, budget: int | None) -> None:
    """Wherever the model begins one, which it need not."""
    use = use_of("auto", dataclasses.replace(F, strict=True))
    reasoning = {} if budget is None else {"max_tokens": budget}
    async with played_service(TOKENIZER, Model(WRONG[name]), END_IDS) as (service, _):
        found, _, tokens = await turns(
            service, use, reasoning=reasoning, stop_conditions={"max_new_tokens": 150}
        )
    text = written(tokens[0])
    for call in found[0].calls:
        assert call.name == "f"
        assert isinstance(json.loads(call.arguments)["x"], int), text
    assert '"no"' not in text or "to=functions.f" not in text


async def test_strict_tools_leave_answers_as_they_are() -> None:
    use = use_of("auto", dataclasses.replace(F, strict=True))
    stray = f"{THOUGHTS}a <|channel|>b{NEXT}{PREAMBLE}c{NEXT}{FINAL}d<|return|>"
    for says in (ANSWER, stray, TURN):
        async with played_service(TOKENIZER, Model(says), END_IDS) as (service, _):
            _, _, tokens = await turns(service, use)
        assert written(tokens[0]) == says


async def test_spent_thoughts_are_not_begun_again() -> None:
    says = f"{THOUGHTS}so and so{NEXT}" * 30
    async with played_service(TOKENIZER, Model(says), END_IDS) as (service, _):
        found, _, tokens = await turns(
            service, reasoning={"max_tokens": 2}, stop_conditions={"max_new_tokens": 90}
        )
    once = f"{THOUGHTS}so{NEXT}<|channel|>"
    assert written(tokens[0]).startswith(once)
    assert not written(tokens[0]).startswith(f"{once}a")
    assert found[0].reasoning == "so"


async def test_another_trigger_is_one_of_the_answer_alone() -> None:
    says = f"{THOUGHTS}a <think> b{NEXT}{FINAL}c <think> d<|return|>"
    constraint = {"regex": "12?", "trigger": "<think>"}
    async with played_service(TOKENIZER, Model(says), END_IDS) as (service, _):
        found, _, tokens = await turns(
            service, constraint=constraint, stop_conditions={"max_new_tokens": 80}
        )
    assert found[0].reasoning == "a <think> b"
    assert found[0].content.startswith("c <think>1"), written(tokens[0])


KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "all": (TURN, {}, {}),
    "a budget": (TURN, {}, {"max_tokens": 3}),
    "a language": (ANSWER, {"constraint": {"regex": "yes, [a-z]{4}"}}, {}),
    "both": (ANSWER, {"constraint": {"json_schema": '{"enum": ["a"]}'}}, {"max_tokens": 3}),
}


TURNS = [
    pytest.param(kind, mode, marks=pytest.mark.grid if (kind, mode) == ("a budget", "auto") else ())
    for kind, (_, fields, _) in KINDS.items()
    for mode in ("auto", "required", "strict")
    if mode == "auto" or not fields
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mode"), TURNS)
async def test_a_stream_goes_on_from_any_token(kind: str, mode: str) -> None:
    says, fields, reasoning = KINDS[kind]
    tool = dataclasses.replace(F, strict=mode == "strict")
    use = use_of("required" if mode == "required" else "auto", tool)
    async with played_service(TOKENIZER, Model(says), END_IDS) as (service, _):
        whole, usage, tokens = await turns(service, use, reasoning=reasoning, **fields)
        for cut in range(len(tokens[0])):
            rest, rest_usage, more = await turns(
                service,
                use,
                reasoning=reasoning,
                generated=[{"token_ids": tokens[0][:cut]}],
                **fields,
            )
            assert more.get(0, []) == tokens[0][cut:]
            assert rest[0].reasoning == whole[0].reasoning
            assert rest[0].parts == whole[0].parts
            assert rest_usage.reasoning_tokens == usage.reasoning_tokens
    assert IDS["<|end|>"] in tokens[0]


PIECES = [
    THOUGHTS, FINAL, PREAMBLE, NEXT, CALL, header("f"), *templates.HARMONY_TOKENS, "assistant",
    " to=functions.f", "a", "yes, ", '{"x": 1}', "json", "<think>",
]  # fmt: skip
STRICT = use_of("auto", dataclasses.replace(F, strict=True))
ANY: dict[str, tuple[ToolUse, dict[str, Any]]] = {
    "free": (use_of("auto", F), {}),
    "a language": (NO_TOOLS, {"constraint": {"json_schema": '{"enum": ["a", 7]}'}}),
    "required": (use_of("required", F), {}),
    "strict": (STRICT, {}),
    "a trigger": (use_of("auto", F), {"constraint": {"regex": "12?", "trigger": "<think>"}}),
}


@dataclasses.dataclass(frozen=True)
class Babbler:
    """Says pieces of envelopes, in any order, many to their end."""

    seed: int

    def __call__(self, output: list[int]) -> int:
        choose = random.Random(f"{self.seed} {output}")
        begun = [
            (length, tokens[length])
            for tokens in map(encode, PIECES)
            for length in range(1, len(tokens))
            if output[-length:] == tokens[:length]
        ]
        if begun and choose.random() < 0.85:
            return max(begun)[1] if choose.random() < 0.8 else choose.choice(begun)[1]
        return encode(choose.choice(PIECES))[0]


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 3])
@pytest.mark.parametrize("kind", ANY)
async def test_anything_a_model_says_has_a_turn(kind: str, budget: int | None) -> None:
    """No error, calls that keep to what they are held to, and a stream that can be gone on with."""
    use, fields = ANY[kind]
    more = {**fields, "reasoning": {} if budget is None else {"max_tokens": budget}}
    more["stop_conditions"] = {"max_new_tokens": 70}
    for seed in range(20):
        async with played_service(TOKENIZER, Babbler(seed), END_IDS) as (service, _):
            whole, _, tokens = await turns(service, use, **more)
            cut = random.Random(seed).randrange(len(tokens[0]))
            begun = [{"token_ids": tokens[0][:cut]}]
            rest, _, others = await turns(service, use, generated=begun, **more)
        assert others.get(0, []) == tokens[0][cut:]
        assert (rest[0].reasoning, rest[0].parts) == (whole[0].reasoning, whole[0].parts)
        if kind == "strict":
            for call in whole[0].calls:
                assert isinstance(json.loads(call.arguments)["x"], int)
        if kind == "a language":
            assert whole[0].content in ("", '"', '"a', '"a"', "7")
        if kind == "required":
            assert whole[0].content == ""
