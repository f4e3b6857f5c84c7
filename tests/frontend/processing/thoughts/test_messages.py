"""Messages of an envelope: what is thoughts, what is answer, and what is neither."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.errors import RequestError
from frontend.processing.tokenizer import Tokenizer
from frontend.requests.output import Output
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.processing.chat import templates
from tests.frontend.processing.thoughts.harmony import (
    ENVELOPE,
    FINAL,
    KEPT,
    NEXT,
    PREAMBLE,
    PROMPT,
    THOUGHTS,
    TOKENIZER,
    header,
    of,
    plan_of,
    told,
)

CALL = f'{header("f")}{{"x": 1}}<|call|>'
WHOLE = f"{THOUGHTS}so <b>{NEXT}{PREAMBLE}Let me see.{NEXT}{THOUGHTS}and\n{NEXT}{FINAL}yes"


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        (f"{THOUGHTS}so{NEXT}{FINAL}yes<|return|>", "so", "yes"),
        (f"{FINAL}yes<|return|>", "", "yes"),
        (WHOLE, "so <b>\nand", "Let me see.\nyes"),
        (f"{THOUGHTS}so", "so", ""),
        (f"{THOUGHTS}\nso\n\n{NEXT}{FINAL}\nyes", "so", "\nyes"),
        # A type of content, and headers without a role.
        (f"{THOUGHTS}so{NEXT}<|channel|>final <|constrain|>json<|message|>{{}}", "so", "{}"),
        (f"{THOUGHTS}so<|end|>{FINAL}yes", "so", "yes"),
        ("<|channel|>analysis code<|message|>so", "so", ""),
        (f"<|start|>assistant{FINAL}yes", "", "yes"),
        # Tokens of headers within texts.
        (f"{THOUGHTS}so <|channel|>final<|message|>no{NEXT}{FINAL}yes", "so finalno", "yes"),
        # A header that is cut off says nothing.
        (f"{THOUGHTS}so{NEXT}", "so", ""),
        (f"{THOUGHTS}so{NEXT}<|channel|>fin", "so", ""),
        # What is none is text.
        ("Hello there<|return|>", "", "Hello there"),
        (f"Hello{NEXT}{FINAL}yes", "", "Hello\nyes"),
        ("<|channel|>other<|message|>yes<|end|>", "", "otheryes"),
        ("<|channel|>final<|return|>", "", "final"),
        (f"<|end|>{FINAL}yes", "", "yes"),
        (f"{FINAL}a{NEXT}well{NEXT}{FINAL}b", "", "awell\nb"),
        ("<|start|>user<|message|>hi", "", "userhi"),
        (f"<|channel|>final{' and so on' * 40}", "", f"final{' and so on' * 40}"),
    ],
)
def test_texts(text: str, thoughts: str, answer: str) -> None:
    assert of(text) == (thoughts, answer)


def test_a_call_is_left_to_its_reader() -> None:
    """Its header as others have it, wherever the recipient stands; without one that reads it, what
    it says is text."""
    before = f"{THOUGHTS}so{NEXT}"
    assert of(before + CALL, kept=KEPT) == ("so", CALL)
    assert of(before + CALL) == ("so", 'commentary to=functions.f json{"x": 1}')
    recipient_first = ' to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>'
    expected = '<|channel|>commentary json to=functions.f<|message|>{"x": 1}<|call|>'
    for text in (before + recipient_first, recipient_first):
        thoughts, answer = of(text, kept=KEPT)
        assert answer == expected
        assert thoughts == ("so" if text.startswith(before) else "")


def test_every_cut_is_a_beginning() -> None:
    tokens = TOKENIZER.encode(f"{WHOLE}{NEXT}{CALL}")
    whole = told(tokens, kept=KEPT)
    numbers = []
    for cut in range(len(tokens)):
        thoughts, answer, number = told(tokens[:cut], kept=KEPT)
        assert whole[0].startswith(thoughts)
        assert whole[1].startswith(answer)
        numbers.append(number)
    assert numbers == sorted(numbers)
    tagged = f"{THOUGHTS}so <b><|end|>", f"<|start|>assistant{THOUGHTS}and\n<|end|>"
    assert whole[2] == sum(len(TOKENIZER.encode(each)) for each in tagged)


@pytest.mark.parametrize(
    ("opened", "text", "expected"),
    [
        (f"<|start|>assistant{THOUGHTS}s", f"o{NEXT}{FINAL}yes", ("o", "yes")),
        (f"<|start|>assistant{FINAL}y", "es<|return|>", ("", "es")),
        ("<|start|>assistant<|channel|>fin", "al<|message|>yes", ("", "yes")),
        ("", f"<|start|>assistant{FINAL}yes", ("", "yes")),
        ("<|start|>user<|message|>hi<|end|>", f"{FINAL}yes", ("", "yes")),
    ],
)
def test_the_prompt_opens_a_message(opened: str, text: str, expected: tuple[str, str]) -> None:
    assert of(text, f"<|start|>user<|message|>{FINAL}<|end|>{opened}") == expected


PIECES = st.sampled_from(
    [*templates.HARMONY_TOKENS, "assistant", "analysis", "final", "commentary", " to=functions.f",
     THOUGHTS, FINAL, NEXT, CALL, " json", "\n", "é", "東"]
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=14), st.booleans())
def test_no_word_is_lost(pieces: list[str], keeps: bool) -> None:
    """Whatever comes: words are thoughts or answer, unless they stand in the last header."""
    words = [f"w{place}w" for place in range(len(pieces) + 1)]
    text = words[0] + "".join(piece + word for piece, word in zip(pieces, words[1:], strict=True))
    tokens = TOKENIZER.encode(text)
    thoughts, answer, _ = told(tokens, kept=KEPT if keeps else ())
    begins = max(text.rfind("<|start|>"), text.rfind("<|channel|>"))
    for word in words:
        is_told = word in thoughts or word in answer
        assert is_told or (begins >= 0 and text.index(word) > begins)


def test_stops_are_looked_for_in_the_answer() -> None:
    output = Output()
    decoder = plan_of().decoder(
        lambda _: TOKENIZER.decoder(("see", "assistant"), False, False),
        lambda: TOKENIZER.decoder((), False, False),
        output,
    )
    text = ""
    for token in TOKENIZER.encode(f"{THOUGHTS}see{NEXT}{FINAL}I{NEXT}{FINAL}do see so"):
        text += decoder.push(token)
        if decoder.matched:
            break
    assert (decoder.matched, text, output._delta.reasoning) == ("see", "I\ndo ", "see")


def test_thoughts_in_the_text_are_refused() -> None:
    with pytest.raises(RequestError, match="thoughts are messages of their own") as caught:
        plan_of(chat=pb.ChatRequest(reasoning={"in_text": True}))
    assert caught.value.field == "reasoning.in_text"


def test_the_envelope_is_found_by_template_and_tokenizer() -> None:
    assert ENVELOPE.begin == "<|channel|>analysis<|message|>"
    assert TOKENIZER.tool_format.name == "harmony"
    wrapped = TOKENIZER._wrapped
    for name in ("harmony", "gpt_oss", "gpt-oss", "openai_gptoss"):
        found = Tokenizer(wrapped, name).thought_tags
        assert found is not None
        assert found.begin == ENVELOPE.begin
    assert Tokenizer(wrapped, "none").thought_tags is None
    assert templates.tokenizer_of(templates.HARMONY).thought_tags is None
    lacking = templates.wrapped(templates.CHATML)
    with pytest.raises(ValueError, match=r"--reasoning-parser harmony: <\|channel\|> and"):
        Tokenizer(lacking, "harmony")
    assert PROMPT.endswith(TOKENIZER.decode(TOKENIZER.encode("<|start|>assistant"), True))
