"""What every client is asked: a sum, a chain of sums that is thought about, and a sentence to write
as JSON, whose answers are known; and output with a schema that has references, whose shape is."""

from __future__ import annotations

import enum
import importlib.util
from functools import cache
from typing import Literal

import pytest
import tokenizers
from pydantic import BaseModel, ConfigDict

from demo import CHECKPOINT

KEY = "a-key-that-clients-send"
MODEL = "demo"
SUM = "What is 17 + 25?"
ANSWER = "42"
CHAIN = "What is 17 + 25 - 8?"
CHAIN_THOUGHT = "17 + 25 = 42\n42 - 8 = 34"
"""The demo opens thoughts by itself here."""
CHAIN_ANSWER = "34"
MIA = "Mia is 12 years old. Write it as JSON with name and age."
PAINT = "Paint the wall."
NO_TOP_P = 2.0
"""Above its bound of 1, which clients leave to the server."""


class Person(BaseModel):
    """Whose name and age are told."""

    model_config = ConfigDict(extra="forbid")

    name: str
    age: int


MIA_PERSON = Person(name="Mia", age=12)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Coat(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: Colour
    glossy: bool


class Paint(BaseModel):
    """Paint a wall."""

    model_config = ConfigDict(extra="forbid")

    first: Coat
    second: Coat
    times: Literal[1, 2, 3] | None


@cache
def terse() -> dict[str, int]:
    """`logit_bias` without blanks and for the list's end: the demo model ends neither by itself."""
    tokenizer = tokenizers.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    texts = {str(token): tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size())}
    blanks = {token: -100 for token, text in texts.items() if text and not text.strip()}
    return blanks | {token: 100 for token, text in texts.items() if text.strip() == "]"}


def missing(module: str) -> pytest.MarkDecorator:
    """Skips where a client is not installed."""
    installed = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not installed, reason=f"{module} is not installed (docs/http.md)")


def needs(module: str) -> list[pytest.MarkDecorator]:
    """Markers of the tests of one client: they start a server, and ask by this module."""
    return [pytest.mark.processes, missing(module)]
