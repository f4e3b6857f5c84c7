"""Free text with a language behind a token, as an engine draws it."""

from __future__ import annotations

import pytest

from frontend.errors import RequestError
from frontend.processing.constraints.structured_output import Compiler
from frontend.requests.request import FREE
from frontend.service import responses
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.played_service import played_service
from tests.frontend.processing.chat import templates
from tests.frontend.processing.constraints.languages import allowed

TEMPLATE = templates.CHATML + "{% if thinks %}<think>\n{% endif %}"
TOKENIZER = templates.tokenizer_of(TEMPLATE)
[TRIGGER] = TOKENIZER.encode("<tool_call>")
[END] = TOKENIZER.encode("<|im_end|>")
LANGUAGE = {"regex": "(a|b)[0-9]</tool_call>", "trigger": "<tool_call>"}
# "c" is none of the language, and the lowest token that is stands in its place.
SAID = "yes <tool_call>b7</tool_call> or <tool_call>c7</tool_call> no"
HELD = "yes <tool_call>b7</tool_call> or <tool_call>a7</tool_call> no"


def compiler() -> Compiler:
    return Compiler(
        TOKENIZER.library_tokenizer, vocab_size=TOKENIZER.vocab_size, eos_token_ids=[END]
    )


async def test_the_language_begins_behind_the_token_and_ends_by_itself() -> None:
    [made] = await compiler().matchers(pb.Constraint(**LANGUAGE), 1)
    assert made.mask() == b""
    ahead = made.mask_ahead(1)
    assert ahead is not None
    assert ahead.trigger == TRIGGER
    assert made.mask_ahead(2) is None
    for token in TOKENIZER.encode("yes <tool_call>"):
        made.accept(token)
    assert made.mask() == ahead.bits
    assert allowed(made) >= {TOKENIZER.encode(letter)[0] for letter in "ab"}
    assert made.mask_ahead(1) is None
    for token in TOKENIZER.encode("b7</tool_call>"):
        assert not made.is_stopped
        made.accept(token)
    assert made.mask() == b""
    assert made.mask_ahead(1) == ahead != FREE


async def test_tokens_of_an_earlier_stream() -> None:
    [made] = await compiler().matchers(pb.Constraint(**LANGUAGE), 1)
    tokens = TOKENIZER.encode(SAID)
    wrong = tokens.index(TOKENIZER.encode("c")[0])
    assert made.advance(tokens) == wrong
    [made] = await compiler().matchers(pb.Constraint(**LANGUAGE), 1)
    assert made.advance(TOKENIZER.encode(HELD)) == len(TOKENIZER.encode(HELD))


async def test_a_trigger_is_a_token() -> None:
    for text in ("<tool", "tool_call"):
        with pytest.raises(RequestError, match="is no token of its own") as caught:
            await compiler().matchers(pb.Constraint(regex="a", trigger=text), 1)
        assert caught.value.field == "constraint.trigger"


@pytest.mark.parametrize("budget", [None, 2])
@pytest.mark.parametrize("thinks", [False, True])
async def test_calls_in_free_text_and_none_in_thoughts(thinks: bool, budget: int | None) -> None:
    thoughts = "so <tool_call>c7</think>" if thinks else ""
    said = [*TOKENIZER.encode(thoughts), *TOKENIZER.encode(SAID), END]
    close = TOKENIZER.encode("</think>")[0]

    def say(output: list[int]) -> int:
        place = len(output)
        if thinks and close in output:
            place += said.index(close) - output.index(close)
        return said[min(place, len(said) - 1)]

    chat = pb.ChatRequest(
        messages=[{"role": pb.ROLE_USER, "content": "hi"}],
        request={"constraint": LANGUAGE, "n": 2},
        template_kwargs_json='{"thinks": true}' if thinks else "",
    )
    if budget is not None:
        chat.reasoning.max_tokens = budget
    async with played_service(TOKENIZER, say) as (service, engine):
        answer = await responses.gathered(service.chat(chat))
        num_triggered = engine._group.workers.num_triggered
    for output in answer.outputs:
        assert output.text == HELD
        if thinks:
            cut = TOKENIZER.encode("so <tool_call>c7")[:budget]
            assert output.reasoning == TOKENIZER.decode(cut)
    assert num_triggered == 4, "no draw waited for the token"
