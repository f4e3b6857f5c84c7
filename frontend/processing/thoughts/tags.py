"""Between which tags a model writes its thoughts, and where among them a prompt ends.

Owns the tables of tags and of efforts. Tags must be tokens of their own: a model that only spells
such a tag does not end its thoughts. A model whose thoughts are messages of an envelope has that
instead. Knows nothing of outputs.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from frontend.processing.thoughts.envelope import END, SIGNS, Envelope, find_envelope

TAGS: Mapping[str, tuple[str, str]] = {
    "think": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "seed_oss": ("<seed:think>", "</seed:think>"),
    "kimi": ("◁think▷", "◁/think▷"),
}
"""By name, what a family opens and closes its thoughts with."""
ALIASES: Mapping[str, str] = {
    "deepseek_r1": "think",
    "deepseek_v3": "think",
    "ernie45": "think",
    "glm45": "think",
    "gpt-oss": "harmony",
    "gpt_oss": "harmony",
    "kimi_k2": "think",
    "minimax_m2": "think",
    "openai_gptoss": "harmony",
    "qwen3": "think",
    "step3": "think",
}
"""Other servers' names of the same."""
HARMONY = "harmony"
"""Name of the envelope; see `envelope.py`."""
AUTO, NONE = "auto", "none"
CHOICES = (AUTO, NONE, *TAGS, HARMONY, *ALIASES)

BUDGETS: Mapping[str, int | None] = {
    "": None,
    "none": 0,
    "minimal": 512,
    "low": 2048,
    "medium": 8192,
    "high": None,
    "xhigh": None,
    "max": None,
}
"""Tokens of thoughts by effort; None: as many as the model likes."""

# What models write between a tag and the text next to it.
_BLANKS = ("\n", "\n\n", "\n\n\n")


class Place(enum.Enum):
    """Where a text is."""

    OPEN = enum.auto()
    """At its beginning: thoughts may come, or the answer."""
    THINKING = enum.auto()
    """In its thoughts."""
    BEHIND = enum.auto()
    """Right behind them."""
    ANSWERING = enum.auto()
    """In its answer."""
    HEADER = enum.auto()
    """In the header of a message."""
    BETWEEN = enum.auto()
    """Between two messages."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtTags:
    """The tags of one model.

    Attributes:
        begin, end: as text.
        begin_id, end_id: the tokens that these are.
        blank_ids: tokens that are line ends only.
        border_ids: all added tokens but the tags; a turn's role stands before one.
    """

    begin: str
    end: str
    begin_id: int
    end_id: int
    blank_ids: frozenset[int]
    border_ids: frozenset[int]

    def place_after(self, prompt_ids: Sequence[int], *, continues: bool) -> Place:
        """Where a prompt ends.

        Args:
            continues: it ends within an assistant's turn, whose answer has begun unless its
                thoughts have not ended.
        """
        for token in reversed(prompt_ids):
            if token == self.begin_id:
                return Place.THINKING
            if token == self.end_id:
                return Place.ANSWERING
            if token in self.border_ids:
                break
        return Place.ANSWERING if continues else Place.OPEN


ThoughtForm = ThoughtTags | Envelope
"""How a model's thoughts are told from its answer."""


def find_form(
    parser: str,
    template: str,
    added: Mapping[str, int],
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> ThoughtForm | None:
    """The form of a model's thoughts; None where they are not told from its answer.

    Args:
        parser: one of `CHOICES`; auto: what the chat template has and the tokenizer knows.
        template: the chat template's source.
        added: ids of the tokenizer's added tokens by their text.
        encode: ids of a text.
        decode: text of ids, with special tokens.

    Raises:
        ValueError: the tags that ``parser`` names are no tokens of this model.
    """
    if parser == NONE:
        return None
    name = ALIASES.get(parser, parser)
    if name == HARMONY or (parser == AUTO and all(sign in template for sign in SIGNS)):
        envelope = find_envelope(added, encode, decode)
        if envelope is not None or parser != AUTO:
            return envelope or _refuse(parser, (*SIGNS, END))
    for begin, end in TAGS.values() if parser == AUTO else [TAGS[name]]:
        if parser == AUTO and begin not in template and end not in template:
            continue
        if begin in added and end in added:
            return _tags(begin, end, added, encode)
    return None if parser == AUTO else _refuse(parser, TAGS[name])


def _tags(
    begin: str, end: str, added: Mapping[str, int], encode: Callable[[str], list[int]]
) -> ThoughtTags:
    ids = added[begin], added[end]
    blanks = [encode(blank) for blank in _BLANKS]
    return ThoughtTags(
        begin=begin,
        end=end,
        begin_id=ids[0],
        end_id=ids[1],
        blank_ids=frozenset(blank[0] for blank in blanks if len(blank) == 1),
        border_ids=frozenset(added.values()) - {*ids},
    )


def _refuse(parser: str, tokens: Sequence[str]) -> NoReturn:
    raise ValueError(
        f"--reasoning-parser {parser}: {' and '.join(tokens)} are no tokens of this model's "
        f"tokenizer; use {AUTO} or {NONE}"
    )
