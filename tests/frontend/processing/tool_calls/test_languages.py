"""Outputs that are held to calls as the model writes them, and what readers make of them."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from frontend.processing.constraints.structured_output import GrammarMatcher
from frontend.processing.tool_calls.table import FORMATS
from frontend.processing.tool_calls.tool_use import ToolUse, tool_use
from frontend.processing.tool_calls.tools import Mode, Tool, ToolChoice
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import EOS
from tests.frontend.processing.constraints.languages import allowed, byte_compiler, takes
from tests.frontend.processing.tool_calls.reading import read
from tests.frontend.processing.tool_calls.written import ROME, WRITTEN

COMPILER = byte_compiler()
HELD = [name for name in FORMATS if name != "pythonic"]
CLOSED = {"type": "object", "additionalProperties": False}


def tool(name: str, parameters: Any, **more: Any) -> Tool:
    return Tool(name=name, parameters=parameters, sent={}, field=f"tools.{name}", **more)


WEATHER = tool(
    "weather",
    {
        **CLOSED,
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city", "days"],
    },
)
NOW = tool("now", {**CLOSED, "properties": {}})
TOOLS = (WEATHER, NOW)


def held(
    name: str, mode: Mode = "required", tools: tuple[Tool, ...] = TOOLS, **more: Any
) -> ToolUse:
    names = tuple(each.name for each in tools)
    choice = ToolChoice(mode=mode, names=names[:1] if mode == "named" else names)
    return tool_use(tools, choice, FORMATS[name], **more)


async def matcher(constraint: pb.Constraint | None) -> GrammarMatcher:
    assert constraint is not None
    [made] = await COMPILER.matchers(constraint, 1)
    return made


async def is_taken(use: ToolUse, text: str) -> bool:
    return takes(await matcher(use.constraint), text)


# What the written calls lack of how the template writes them.
EXACT = {
    "qwen3_coder": lambda text: text.replace(
        "<function=now>\n</function>", "<tool_call>\n<function=now>\n</function>\n</tool_call>"
    ),
    "mistral": lambda text: text.replace("] [", "][").replace(', "id": "aB3dE6gH9"', ""),
}


def written(name: str, text: str) -> str:
    return EXACT.get(name, str)(text)


@pytest.mark.parametrize("name", HELD)
async def test_calls_as_the_model_writes_them_are_held_to_and_read(name: str) -> None:
    use, texts = held(name), WRITTEN[name]
    several = written(name, texts.several)
    assert await is_taken(use, several)
    assert read(use.reader(), [several]) == ("", [("weather", ROME), ("now", "{}")])


@pytest.mark.parametrize("name", HELD)
async def test_one_call_where_one_is_asked_for(name: str) -> None:
    texts = WRITTEN[name]
    one, several = written(name, texts.one), written(name, texts.several)
    for use in (held(name, parallel=False), held(name, "named")):
        assert await is_taken(use, one)
        assert not await is_taken(use, several)


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("said", ["Look: ", "weather(", ""])
async def test_nothing_else_is_allowed(name: str, said: str) -> None:
    use = held(name)
    assert not await is_taken(use, said)
    one = written(name, WRITTEN[name].one)
    for wrong in (one.replace("3", "x"), one.replace("weather", "other"), one + "!"):
        assert not await is_taken(use, wrong)


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("seed", range(4))
async def test_any_text_of_the_language_is_read_as_calls(name: str, seed: int) -> None:
    """Walked at random: whatever the grammar lets a model write, its reader finds calls alone."""
    use, choose = held(name), random.Random(seed)
    each, said = await matcher(use.constraint), bytearray()
    while EOS not in (may := allowed(each)):
        byte = _to_the_end(name, bytes(said), may) if len(said) > 150 else None
        if byte is None:
            byte = choose.choice(sorted(may & {*range(0x80)}) or sorted(may))
        said.append(byte)
        each.accept(byte)
        if each.is_stopped:
            break
        assert len(said) < 3000, said
    content, calls = read(use.reader(), [said.decode()])
    assert content == ""
    assert calls
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)


_ENDS = {
    "qwen3_coder": (b"\n</parameter>\n",),
    "glm45": (b"</arg_value>",),
    "minimax_m2": (b"</parameter>\n",),
}
_ENDS_OF_JSON = b'"', b"}]", b"}", b",", b"0"


def _to_the_end(name: str, said: bytes, may: set[int]) -> int | None:
    """The byte that goes on with what ends the longest way; None where none does."""
    ends = _ENDS.get(name, _ENDS_OF_JSON)
    ways = [
        (length, -number, end[length])
        for number, end in enumerate(ends)
        for length in range(len(end))
        if said.endswith(end[:length]) and end[length] in may
    ]
    return max(ways)[2] if ways else None


@pytest.mark.parametrize("name", HELD)
async def test_a_held_output_that_is_cut_tells_no_tags(name: str) -> None:
    """Whole calls are calls, the last one's arguments are as far as they came."""
    use, text = held(name), written(name, WRITTEN[name].several)
    for end in range(len(text)):
        content, calls = read(use.reader(), [text[:end]])
        assert content == ""
        assert [call[0] for call in calls] in ([], ["weather"], ["weather", "now"])
        if calls:
            assert ROME.startswith(calls[0][1])


@pytest.mark.parametrize("name", HELD)
async def test_a_language_may_begin_behind_the_first_tag(name: str) -> None:
    begin = FORMATS[name].begins[0]
    assert FORMATS[name].with_tokens({}, ["<other>"]).held_where_begun(TOOLS) is None
    language = FORMATS[name].with_tokens({}, [begin]).held_where_begun(TOOLS)
    assert language is not None
    assert language.constraint.trigger == begin
    language.constraint.ClearField("trigger")  # which the compiler's tokenizer has not
    one, several = (written(name, text) for text in (WRITTEN[name].one, WRITTEN[name].several))
    for text, is_whole in ((one, True), (several, several.count(begin) == 1)):  # in a section
        assert text.startswith(begin)
        assert takes(await matcher(language.constraint), text.removeprefix(begin)) is is_whole


def test_what_no_grammar_says_is_json() -> None:
    for use in (held("pythonic"), held("pythonic", "named")):
        assert use.constraint is not None
        assert use.constraint.HasField("json_schema")
    many = tuple(tool(f"{'f' * 60}{index}", WEATHER.parameters) for index in range(128))
    use = held("qwen3_coder", tools=many)
    assert use.constraint is not None
    assert use.constraint.HasField("json_schema")  # a grammar would be too long


async def test_values_between_tags_keep_to_their_schemas() -> None:
    root = {
        **CLOSED,
        "$defs": {"N": {"type": "integer"}, "S": {"type": "string"}},
        "properties": {
            "n": {"$ref": "#/$defs/N"},
            "s": {"$ref": "#/$defs/S"},
            "o": {**CLOSED, "properties": {"a": {"type": "null"}}, "required": ["a"]},
            "any": {},
        },
        "required": ["n", "s", "o", "any"],
    }
    use = held("glm45", tools=(tool("f", root),))

    def text(n: str, s: str, o: str, other: str) -> str:
        pairs = zip(("n", "s", "o", "any"), (n, s, o, other), strict=True)
        inner = "".join(
            f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" for key, value in pairs
        )
        return f"<tool_call>f{inner}</tool_call>"

    assert await is_taken(use, text("5", "5 </arg> é\n", '{"a": null}', "x"))
    assert not await is_taken(use, text("x", "5", '{"a": null}', "x"))
    assert not await is_taken(use, text("5", "5", "{}", "x"))
    assert use.fields["constraint.json_schemas.s0"] == "tools.f"


async def test_optional_arguments_may_be_left_out_and_unnamed_ones_may_come() -> None:
    free = tool("free", {"type": "object"})
    use = held("minimax_m2", tools=(WEATHER, free))
    unit = '<parameter name="unit">{}</parameter>\n'
    one = WRITTEN["minimax_m2"].one
    for value, is_right in (("C", True), ("K", False)):
        text = one.replace("</invoke>", unit.format(value) + "</invoke>")
        assert await is_taken(use, text) == is_right
    said = '<invoke name="free">\n<parameter name="x">1</parameter>\n</invoke>\n'
    assert await is_taken(use, f"<minimax:tool_call>\n{said}</minimax:tool_call>")
    assert not await is_taken(use, one.replace('name="city"', 'name="town"'))


async def test_strict_closes_objects_in_the_models_form() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    for strict in (False, True):
        use = held("hermes", tools=(tool("f", parameters, strict=strict),))
        said = '<tool_call>\n{"name": "f", "arguments": {"a": {"x": 1}}}\n</tool_call>'
        assert await is_taken(use, said) is not strict


async def test_tags_that_are_special_tokens_are_written_by_them() -> None:
    """And other text by any tokens: the token's own spelling is not its text."""
    special = {"[TOOL_CALLS]": 300, "[ARGS]": 301}
    form = FORMATS["mistral"].with_tokens(special, special)
    language = form.held(TOOLS)
    assert language is not None
    [each] = await byte_compiler(vocab_size=302).matchers(language.constraint, 1)
    assert allowed(each) == {300}
    for token in (300, *b"now", 301):
        each.accept(token)
    assert takes(each, "{}")


@pytest.mark.slow
async def test_many_tools_compile_in_time() -> None:
    """As many as a request may have, or what its grammar has room for."""
    for name in HELD:
        some = tuple(tool(f"f{index}", WEATHER.parameters) for index in range(64))
        use = held(name, tools=some)
        start = time.thread_time()
        await matcher(use.constraint)
        assert time.thread_time() - start < 5.0
