"""Text of custom tools, read from JSON that comes in pieces."""

from __future__ import annotations

import json

import pytest

from frontend.api.openai.responses.custom_input import CustomInput

TEXT = '*** "a"\n\\ \t é \N{GRINNING FACE}\x00/'


@pytest.mark.parametrize("is_ascii", [True, False])
def test_it_is_the_same_wherever_it_is_cut(is_ascii: bool) -> None:
    arguments = json.dumps({"input": TEXT}, ensure_ascii=is_ascii)
    for place in range(len(arguments) + 1):
        reader = CustomInput()
        parts = [reader.push(arguments[:place]), reader.push(arguments[place:])]
        assert "".join(parts) == TEXT
        assert (reader.is_done, reader.flush()) == (True, "")
    reader = CustomInput()
    assert "".join(map(reader.push, arguments)) == TEXT


def test_what_was_cut_off_is_as_far_as_it_came() -> None:
    arguments = json.dumps({"input": TEXT})
    begin = len('{"input": "')
    for place in range(begin, len(arguments)):
        reader = CustomInput()
        text = reader.push(arguments[:place]) + reader.flush()
        assert TEXT.startswith(text)
        assert len(text) >= (place - begin) // len(r"\ud83d\ude00")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"other": 1}', '{"other": 1}'),
        ('{"input": 5}', '{"input": 5}'),
        ('{"input":"a\nb"}', "a\nb"),  # a line's end that JSON does not have
        (r'{"input": "a\q and more text"}', r'a\q and more text"}'),
        (r'{"input": "a\ud83d and more"}', r'a\ud83d and more"}'),
        ("", ""),
    ],
)
def test_what_has_another_form_is_not_lost(arguments: str, text: str) -> None:
    reader = CustomInput()
    assert "".join(map(reader.push, arguments)) + reader.flush() == text
