"""Structured output: masks against a walk of the language, bounds, and the end of a sequence."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.bounds import MAX_COMPILES
from frontend.engine.output_processor import take_token
from frontend.errors import Code, RequestError
from frontend.processing.constraints import structured_output
from frontend.processing.constraints.structured_output import Compiler
from frontend.processing.tokenizer import Tokenizer
from frontend.requests.output import FinishReason, Output
from frontend.requests.request import Request, SamplingParams, StopConditions
from frontend.scheduler.sequence import Sequence
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import EOS, MODEL, FakeEngine, backend
from tests.frontend.processing.constraints.languages import allowed, byte_compiler, matcher, takes
from tests.waiting import until

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


async def test_a_mask_allows_what_the_language_does() -> None:
    each = await matcher(regex="(ab|ac)d?")
    assert allowed(each) == {ord("a")}
    each.accept(ord("a"))
    assert allowed(each) == {ord("b"), ord("c")}
    assert each.mask() == each.mask()
    each.accept(ord("c"))
    assert allowed(each) == {ord("d"), EOS}
    assert not each.is_stopped
    each.accept(ord("d"))
    assert each.is_stopped


@pytest.mark.parametrize("vocab_size", [256, 257, 288, 1000])
async def test_masks_are_as_long_as_the_models_vocabulary(vocab_size: int) -> None:
    each = await matcher(byte_compiler(vocab_size), regex="[^a]+")
    assert len(each.mask()) == (vocab_size + 31) // 32 * 4
    assert max(allowed(each)) < 256


async def test_whitespace_between_parts_of_json_has_an_end() -> None:
    """A model that likes it would otherwise never close its object."""
    for text, is_taken in (
        ('{"a":1,"b":[2]}', True),
        ('{\n    "a": 1\n}', True),
        ("{ \n", False),
        ("{\n\n", False),
        ("{\n" + " " * 33, False),
    ):
        each = await matcher(json_object=True)
        for letter in text[:-1]:
            each.accept(ord(letter))
        assert (ord(text[-1]) in allowed(each)) == is_taken, text


async def test_a_format_that_nobody_enforces_is_an_annotation() -> None:
    each = await matcher(json_schema='{"properties": {"format": {"const": 1}}, "format": "x"}')
    for letter in '{"format":1':
        each.accept(ord(letter))
    each = await matcher(json_schema='{"type": "string", "format": "int64"}')
    each.accept(ord('"'))
    assert {ord("a"), ord("Z"), ord('"')} <= allowed(each)
    each = await matcher(json_schema='{"type": "string", "format": "uuid"}')
    each.accept(ord('"'))
    assert ord("Z") not in allowed(each)


def nested(**schema: object) -> str:
    within = {"type": "object", "properties": {"s": {"type": "string", **schema}}}
    return json.dumps({"type": "object", "properties": {"o": within}})


def inner(text: str) -> str:
    return json.dumps({"o": {"s": text}}, separators=(",", ":"))


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (nested(maxLength=2000), inner(2000 * "a"), inner(2001 * "a")),
        (nested(minLength=1, maxLength=65_536), inner("a"), inner("")),
        (nested(pattern="\\S"), inner(" a "), inner(" ")),
        (nested(pattern="^a there\\!$"), inner("a there!"), inner("a there")),
        ('{"items": [{"const": 1}, {"const": 2}], "additionalItems": false}', "[1,2]", "[1,2,3]"),
        (
            '{"properties": {"n": {"multipleOf": 5}}, "required": ["n"], '
            '"additionalProperties": false, "patternProperties": {"^n$": {"type": "integer"}}}',
            '{"n":10}',
            '{"n":11}',
        ),
    ],
)  # fmt: skip
async def test_schemas_that_others_compile_to_something_else(
    schema: str, right: str, wrong: str
) -> None:
    assert takes(await matcher(json_schema=schema), right)
    assert not takes(await matcher(json_schema=schema), wrong)


async def test_every_end_token_may_end() -> None:
    each = await matcher(byte_compiler(eos=(0, 3)), regex="a+")
    each.accept(ord("a"))
    assert allowed(each) == {0, 3, ord("a")}


async def test_copies_go_their_own_ways() -> None:
    first, second = await byte_compiler().matchers(pb.Constraint(regex="ab|cd"), 2)
    first.accept(ord("a"))
    assert allowed(first) == {ord("b")}
    assert allowed(second) == {ord("a"), ord("c")}


async def test_a_real_tokenizer_walks_a_schema(tokenizer: Tokenizer) -> None:
    compiler = Compiler(tokenizer.library_tokenizer, vocab_size=500, eos_token_ids=(0,))
    for seed in range(10):
        each = await matcher(compiler, json_schema=json.dumps(SCHEMA))
        choose, tokens = random.Random(seed), []
        while not each.is_stopped:
            token = choose.choice(sorted(allowed(each)))
            assert token < tokenizer.vocab_size
            if token == 0:
                break
            tokens.append(token)
            each.accept(token)
        said = json.loads(tokenizer.decode(tokens))
        assert isinstance(said["name"], str)
        assert 0 <= said["age"] <= 150
        assert said["kind"] in ("a", "b")
        assert set(said) == {"name", "age", "kind"}


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="ab", max_size=12))
def test_a_path_is_open_exactly_for_the_languages_words(word: str) -> None:
    expression = "(ab|b)*a?"
    each = asyncio.run(matcher(regex=expression))
    for letter in word:
        if ord(letter) not in allowed(each):
            assert not any(re.fullmatch(expression, word + end) for end in ("", "a", "b", "ab"))
            return
        each.accept(ord(letter))
    assert (EOS in allowed(each)) == bool(re.fullmatch(expression, word))


BAD: list[tuple[str, dict[str, object]]] = [
    ("json_schema", {"json_schema": "{"}),
    ("json_schema", {"json_schema": "[" * 60_000}),
    ("json_schema", {"json_schema": "[]"}),
    ("json_schema", {"json_schema": "false"}),
    ("json_schema", {"json_schema": '{"type": "strin"}'}),
    ("json_schema", {"json_schema": '{"$ref": "http://127.0.0.1/x"}'}),
    ("json_schema", {"json_schema": '{"enum": [Infinity]}'}),
    ("json_schema", {"json_schema": " " * 65_537}),
    ("json_schema", {"json_schema": json.dumps({"const": "x" * 4097})}),
    ("json_schema", {"json_schema": json.dumps({"properties": {"x" * 4097: {}}})}),
    ("json_object", {"json_object": False}),
    ("regex", {"regex": "("}),
    ("regex", {"regex": "(?=a)b"}),
    ("regex", {"regex": "(" * 4000 + ")" * 4000}),
    ("regex", {"regex": "a" * 8193}),
    ("grammar", {"grammar": ""}),
    ("grammar", {"grammar": "start: missing"}),
    ("grammar", {"grammar": 'start: %json {"type": "object"}'}),
    ("grammar", {"grammar": '{"grammars": [{"json_schema": {"type": "object"}}]}'}),
    ("grammar", {"grammar": "start: " + "(" * 8000}),
    ("grammar", {"grammar": "x" * 16_385}),
    ("grammar", {"grammar": "\n".join(f"r{i}: r{i + 1}" for i in range(1000))}),
    ("grammar", {"grammar": "start: A\nA: /a/ & /a/ & /a/"}),
    ("json_schema", {"json_schema": json.dumps({"allOf": [{"pattern": "a"}] * 5})}),
    (
        "json_schema",
        {"json_schema": json.dumps({"pattern": "a", "anyOf": [{"pattern": "b"}] * 4})},
    ),
    (
        "json_schema",
        {
            "json_schema": json.dumps(
                {
                    "$ref": "#/$defs/a",
                    "format": "date",
                    "$defs": {"a": {"oneOf": [{"patternProperties": {key: {} for key in "abcd"}}]}},
                }
            )
        },
    ),
    ("", {}),
]


@pytest.mark.parametrize(("language", "asked"), BAD)
async def test_what_is_no_language_is_refused(language: str, asked: dict[str, object]) -> None:
    with pytest.raises(RequestError) as caught:
        await byte_compiler().matchers(pb.Constraint(**asked), 1)
    error = caught.value
    field = f"constraint.{language}" if language else "constraint"
    assert (error.code, error.field) == (Code.INVALID_ARGUMENT, field)
    assert "\n" not in error.message
    assert len(error.message) < 400


async def test_what_cannot_begin_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        await matcher(grammar='start: start "a"')
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, "constraint")


DEEP = """
import asyncio, json, sys
from tests.frontend.processing.constraints.languages import matcher

async def main():
    for wrap in (
        lambda ref: {"properties": {"x": ref}},
        lambda ref: {"prefixItems": [ref], "minItems": 1, "items": False},
        lambda ref: {"oneOf": [{"oneOf": [{"oneOf": [{"oneOf": [ref]}]}]}]},
    ):
        defs = {f"{i}": wrap({"$ref": f"#/$defs/{i + 1}"}) for i in range(700)}
        schema = {"$ref": "#/$defs/0", "$defs": {**defs, "700": {"type": "null"}}}
        made = await matcher(json_schema=json.dumps(schema, separators=(",", ":")))
        assert any(made.mask())
        print("taken")

asyncio.run(main())
"""


@pytest.mark.processes
def test_deep_references_do_not_end_the_process() -> None:
    """The compiler recurses through them: on a usual stack it would be killed."""
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", DEEP],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'proto'}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "taken\n" * 3), done.stderr


async def test_patterns_of_different_places_are_as_many_as_they_are() -> None:
    schema = {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", "pattern": "^[a-f]+$"} for i in range(40)},
    }
    assert allowed(await matcher(json_schema=json.dumps(schema))) == {ord("{")}
    both = {"type": "string", "allOf": [{"pattern": "^[ab]+$"}, {"pattern": "^[bc]+$"}]}
    each = await matcher(json_schema=json.dumps(both))
    each.accept(ord('"'))
    assert allowed(each) == {ord("b")}


async def test_the_longest_chain_of_rules_is_taken() -> None:
    rules = "\n".join(f'r{i}: ("x" r{i + 1}*)?' for i in range(510))
    each = await matcher(grammar=f'start: r0\n{rules}\nr510: "a"')
    assert ord("x") in allowed(each)


async def test_a_model_without_end_tokens_cannot_be_constrained() -> None:
    with pytest.raises(RequestError, match="no end token") as caught:
        await matcher(byte_compiler(eos=()), regex="a")
    assert caught.value.code is Code.FAILED_PRECONDITION
    other = Compiler(None, vocab_size=9, eos_token_ids=(0,))
    with pytest.raises(RequestError, match="no tokenizer"):
        await matcher(other, regex="a")
    small = byte_compiler(vocab_size=9)
    with pytest.raises(RequestError) as caught:
        await matcher(small, regex="a")
    assert caught.value.code is Code.FAILED_PRECONDITION


async def test_compiling_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is at it still keeps its slot, and others wait for that."""
    compiler, gate = byte_compiler(), threading.Event()
    await matcher(compiler, regex="a")
    with monkeypatch.context() as slow:
        slow.setattr(compiler, "_compile", lambda *_: gate.wait())
        slow.setattr(structured_output, "COMPILE_SECONDS", 0.05)
        for _ in range(MAX_COMPILES):
            with pytest.raises(RequestError, match="s to compile"):
                await matcher(compiler, regex="a")
    following = asyncio.create_task(matcher(compiler, regex="a"))
    await asyncio.sleep(0)
    assert compiler._slots.num_taken == MAX_COMPILES
    assert not following.done()
    gate.set()
    assert allowed(await following) == {ord("a")}
    await until(lambda: not compiler._slots.num_taken)


async def test_many_languages_of_one_caller_wait_for_each_other() -> None:
    compiler = byte_compiler()
    asked = [pb.Constraint(regex=chr(ord("a") + place)) for place in range(20)]
    made = await asyncio.gather(*(compiler.matchers(each, 1, "alice") for each in asked))
    assert [allowed(each) for [each] in made] == [{ord("a") + place} for place in range(20)]


# ---- beside the rest of a request ----


async def test_a_constrained_answer_keeps_to_its_language() -> None:
    engine, service = FakeEngine(), Service(model=MODEL, version="1")
    service.open(backend(engine))
    asked = pb.GenerateRequest(prompt={"text": "abcdefgh"}, constraint={"regex": "xy+z?"}, n=2)
    answer = await service.complete(pb.CompleteRequest(request=asked))
    for output in answer.outputs:  # the lowest token allowed is the end token, once it is
        assert output.text == "xy\0"
        assert output.finish_reason == pb.FINISH_REASON_EOS


BESIDE = [
    ("stop_conditions.ignore_eos", {"stop_conditions": {"ignore_eos": True}}),
    ("stop_conditions.min_new_tokens", {"stop_conditions": {"min_new_tokens": 1}}),
    ("sampling.allowed_token_ids", {"sampling": {"allowed_token_ids": [1]}}),
    ("sampling.bad_token_ids", {"sampling": {"bad_token_ids": [1]}}),
]


@pytest.mark.parametrize(("field", "more"), BESIDE)
async def test_what_could_leave_no_token_is_refused(field: str, more: dict[str, object]) -> None:
    service = Service(model=MODEL, version="1")
    service.open(backend(FakeEngine()))
    asked = pb.GenerateRequest(prompt={"text": "a"}, constraint={"regex": "a"}, **more)
    with pytest.raises(RequestError) as caught:
        await service.complete(pb.CompleteRequest(request=asked))
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, field)


async def sequence(expression: str, max_new_tokens: int = 9, stop: int = 1) -> Sequence:
    request = Request(
        id="r",
        prompt_ids=[5],
        sampling=SamplingParams(),
        stops=StopConditions(
            max_new_tokens=max_new_tokens,
            eos_token_ids=frozenset({EOS}),
            stop_token_ids=frozenset({stop}),
        ),
        decoder=None,
        output=Output(),
        matcher=await matcher(regex=expression),
    )
    return Sequence(request, 0, 100)


@pytest.mark.parametrize(
    ("expression", "tokens", "reason"),
    [
        ("ab", "ab", FinishReason.STOP),
        ("ab?", "a\0", FinishReason.EOS),
        ("a*", "aaa", FinishReason.LENGTH),
        ("aaa", "aaa", FinishReason.STOP),
        ("ax*", "ax", FinishReason.STOP),
    ],
)
async def test_how_a_constrained_sequence_ends(
    expression: str, tokens: str, reason: FinishReason
) -> None:
    each = await sequence(expression, max_new_tokens=3, stop=ord("x"))
    ends = [take_token(each, ord(token), None, 1.0) for token in tokens]
    assert ends == [False] * (len(tokens) - 1) + [True]
    delta = await each.request.output.take()
    assert (delta.finish_reason, each.request.finish_reason) == (reason, reason)
    assert delta.stop_token_id == (ord("x") if tokens == "ax" else None)


async def test_a_token_outside_the_language_ends_its_request_alone() -> None:
    each = await sequence("ab")
    assert take_token(each, ord("z"), None, 1.0)
    with pytest.raises(RequestError) as caught:
        await each.request.output.take()
    assert caught.value.code is Code.INTERNAL


async def test_what_grows_too_complex_ends_as_the_callers_fault() -> None:
    """Every way to divide the text among the parts is a way it could go on."""
    each = await matcher(grammar="start: a\na: b b\nb: (/x/ | b /y/ | b b)*")

    def follow() -> None:
        for _ in range(3000):
            each.accept(ord("x"))

    with pytest.raises(RequestError) as caught:
        follow()
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.reason == "CONSTRAINT_FAILED"


@pytest.mark.parametrize(("num_samples", "num_masks"), [(1, 11), (4, 6)])
async def test_masks_that_take_long_end_their_request(
    num_samples: int, num_masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 ms a mask: samples share 10 ms a step, and 100 ms beyond it."""
    clock = itertools.count(step=0.02)
    now = types.SimpleNamespace(thread_time=lambda: next(clock))
    monkeypatch.setattr(structured_output, "time", now)
    asked = pb.Constraint(regex="a*")
    matchers = await byte_compiler().matchers(asked, num_samples)
    turns = itertools.cycle(matchers)
    for _ in range(num_masks - 1):
        next(turns).accept(ord("a"))
    with pytest.raises(RequestError, match="ms a token") as caught:
        next(turns).accept(ord("a"))
    assert caught.value.reason == "CONSTRAINT_FAILED"


async def test_the_vocabulary_is_read_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = byte_compiler()
    await compiler.prepare()
    monkeypatch.setattr(structured_output, "LLTokenizer", lambda *_, **__: pytest.fail("again"))
    assert allowed(await matcher(compiler, regex="a")) == {ord("a")}
    unusable = byte_compiler(vocab_size=9)
    monkeypatch.undo()
    await unusable.prepare()
    with pytest.raises(RequestError):
        await matcher(unusable, regex="a")


# ---- schemas of a grammar ----


async def test_a_grammar_uses_json_schemas_by_name() -> None:
    schemas = {
        "number": '{"type": "integer"}',
        "pair": '{"$ref": "#/$defs/P", "$defs": {"P": {"type": "array", "maxItems": 2}}}',
    }
    grammar = 'start: "a" @number "b" (@pair)?'
    for text, is_right in (("a5b", True), ("a5b[1,\n 2]", True), ("axb", False), ("a5b5", False)):
        assert takes(await matcher(grammar=grammar, json_schemas=schemas), text) == is_right


@pytest.mark.parametrize(
    ("field", "language"),
    [
        ("constraint.json_schemas.a", {"grammar": "start: @a", "json_schemas": {"a": "{"}}),
        ("constraint.json_schemas", {"grammar": "start: @a", "json_schemas": {"A b": "{}"}}),
        ("constraint.json_schemas", {"regex": "a", "json_schemas": {"a": "{}"}}),
        ("constraint.grammar", {"grammar": "start: @b", "json_schemas": {"a": "{}"}}),
        (
            "constraint.json_schemas",
            {"grammar": "start: @a", "json_schemas": {"a": json.dumps({"x": "y" * 70_000})}},
        ),
        (
            "constraint.json_schemas",
            {"grammar": "start: @a1", "json_schemas": {f"a{n}": "{}" for n in range(257)}},
        ),
    ],
)
async def test_schemas_of_a_grammar_are_checked(field: str, language: Any) -> None:
    with pytest.raises(RequestError) as caught:
        await matcher(**language)
    assert caught.value.field == field
