"""The source of a chat template in pieces, and what it does with each of its literals.

A literal is written into the prompt, or sought in what a caller sent, as '</think>' in
``content.split('</think>')`` is. Knows nothing of tokens.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import NamedTuple

import jinja2

# Operators beside a literal that compare it, and methods and filters that look for their arguments.
_COMPARISONS = frozenset({"==", "!=", "in", "not"})
_SEARCHES = frozenset(
    {
        "count", "endswith", "find", "index", "lstrip", "partition", "removeprefix", "removesuffix",
        "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "startswith",
        "strip", "trim",
    }
)  # fmt: skip
# Names before a bracket that is no index.
_WORDS = _COMPARISONS | {"and", "elif", "else", "for", "if", "is", "or", "print", "set"}
_CODE = frozenset(
    {"block_begin", "variable_begin", "name", "operator", "string", "integer", "float"}
)


class Use(enum.Enum):
    """What becomes of a piece."""

    CODE = enum.auto()
    WRITTEN = enum.auto()
    SOUGHT = enum.auto()


class Piece(NamedTuple):
    """A part of the source; quotes are pieces of their own."""

    text: str
    use: Use


@dataclasses.dataclass(slots=True)
class _Bracket:
    """An open bracket.

    Attributes:
        use: of the literals in it.
        replaces: it holds the arguments of replace, of which the first is sought.
    """

    use: Use
    replaces: bool = False


def template_pieces(source: str) -> list[Piece]:
    """The pieces, which joined are a source that renders the same."""
    tokens = _tokens(source)
    uses = [Use.WRITTEN if kind == "data" else Use.CODE for kind, _ in tokens]
    code = [place for place, (kind, _) in enumerate(tokens) if kind in _CODE]
    words = ["", "", *(tokens[place][1] for place in code), ""]
    brackets = [_Bracket(Use.WRITTEN)]
    for number, place in enumerate(code):
        earlier, before, word, after = words[number : number + 4]
        if tokens[place][0] == "string":
            compared = before in _COMPARISONS or after in _COMPARISONS
            uses[place] = Use.SOUGHT if compared else brackets[-1].use
        elif word in ("(", "[", "{"):
            brackets.append(_opened(word, before, earlier, brackets[-1]))
        elif word in (")", "]", "}"):
            brackets.pop()
        elif word == "," and brackets[-1].replaces:
            brackets[-1] = _Bracket(Use.WRITTEN)
    pieces = []
    for (kind, text), use in zip(tokens, uses, strict=True):
        if kind == "string":
            quote = Piece(text[0], Use.CODE)
            pieces += [quote, Piece(text[1:-1], use), quote]
        else:
            pieces.append(Piece(text, use))
    return pieces


def _tokens(source: str) -> list[tuple[str, str]]:
    """Kind and text of each token, with the space that Jinja leaves out before {%-."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    source = "\n".join(re.split("\r\n|\r|\n", source))
    tokens, end = [], 0
    for _, kind, text in environment.lex(source):
        start = source.index(text, end)
        tokens += [("space", source[end:start]), (kind, text)]
        end = start + len(text)
    return tokens


def _opened(bracket: str, before: str, earlier: str, outer: _Bracket) -> _Bracket:
    """A bracket after the word ``before``, which stands after ``earlier``."""
    if before in _COMPARISONS:
        return _Bracket(Use.SOUGHT)
    if bracket == "(" and earlier in (".", "|"):
        return _Bracket(Use.SOUGHT if before in _SEARCHES else Use.WRITTEN, before == "replace")
    is_name = before.isidentifier() and before not in _WORDS
    is_index = bracket == "[" and (is_name or before in (")", "]"))
    return _Bracket(Use.CODE if is_index else outer.use)
