"""Control tokens, as a chat template writes them and as a caller's text cannot.

Owns which added tokens are control tokens, and the mark: a character that no text holds, which
stands within each control token that the template writes. A tokenizer whose control tokens are
spelled so takes those of the template for what they are, and the same words in a caller's text for
text. Knows neither tokenizer nor conversations.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tokenizers import AddedToken

from frontend.processing.chat.template_pieces import Piece, Use, template_pieces

MARK = "\ufdd0"
"""One of the characters that Unicode keeps for the inside of programs."""
# Words between the halves of a control token that a template puts together, as in <|{{ role }}|>.
ROLES = ("system", "user", "assistant", "tool")


class ControlTokenError(ValueError):
    """A conversation spells control tokens, which cannot be told from those of the template."""


class ControlTokens:
    """The control tokens of one template.

    Args:
        added: the tokenizer's added tokens by id.
        source: the template.

    Attributes:
        ids: of the control tokens, by their text.
        special: texts of those that the tokenizer calls special: an assistant's content does not
            become one of these either.
        spelled: the added tokens by id with the mark, where they are control tokens; those that the
            template puts together in more than one way.
        marked_source: the template, which marks what it writes.
    """

    def __init__(self, added: Mapping[int, AddedToken], source: str) -> None:
        pieces = template_pieces(source)
        sought = "\0".join(piece.text for piece in pieces if piece.use is Use.SOUGHT)
        literals = "\0".join(piece.text for piece in pieces if piece.use is not Use.CODE)
        control = {
            token_id: token for token_id, token in added.items() if _is_control(token, literals)
        }
        self.ids = {token.content: token_id for token_id, token in control.items()}
        self.special = frozenset(each.content for each in control.values() if each.special)
        self._any = _one_of(self.ids)
        self._ordinary = _one_of(
            text for text in self.ids if text not in self.special and text not in sought
        )
        joints = list(_joints(pieces, self.ids))
        ends = {place for place, _, _ in joints}
        self.marked_source = "".join(
            text if use is not Use.WRITTEN else self.marked(text) + MARK * (place in ends)
            for place, (text, use) in enumerate(pieces)
        )
        self.spelled = [
            (token_id, _marked(token, 1) if token_id in control else token)
            for token_id, token in added.items()
        ]
        joined = {(text, length) for _, text, length in joints}
        for text, length in joined:
            self.spelled.append((self.ids[text], _marked(added[self.ids[text]], length)))
        self._vain = _vain_marks(joined)

    def marked(self, text: str) -> str:
        """A text that is the model's own, with all its control tokens marked."""
        return self._any.sub(_with_mark, text)

    def without_vain_marks(self, text: str) -> str:
        """What the template wrote, without marks where it put no token together after all."""
        return self._vain.sub("", text)

    def marked_ordinary(self, text: str) -> str:
        """An assistant's text, with the control tokens marked that are not special and for which
        the template does not look.
        """
        return self._ordinary.sub(_with_mark, text)


def _joints(pieces: Sequence[Piece], texts: Iterable[str]) -> Iterator[tuple[int, str, int]]:
    """Where the template puts a control token together: the piece that ends with its first part,
    the token's text, and that part's length.
    """
    written = [
        place
        for place, piece in enumerate(pieces)
        if piece.use is Use.WRITTEN and piece.text not in ROLES
    ]
    parts = [(text, *text.partition(role)) for text in texts for role in ROLES if role in text]
    for place, after in itertools.pairwise(written):
        for text, first, _, last in parts:
            ends = bool(first) and pieces[place].text.endswith(first)
            if ends and last and pieces[after].text.startswith(last):
                yield place, text, len(first)


def _vain_marks(joined: Iterable[tuple[str, int]]) -> re.Pattern[str]:
    """Marks behind a token's first part that its last does not follow."""
    lasts: dict[str, list[str]] = {}
    for text, length in joined:
        lasts.setdefault(text[:length], []).append(re.escape(text[length:]))
    parts = [
        f"{MARK}(?<={re.escape(first)}{MARK})(?!{'|'.join(found)})"
        for first, found in lasts.items()
    ]
    return re.compile("|".join(parts) or "(?!)")


def _is_control(token: AddedToken, literals: str) -> bool:
    """Whether it is no mere word: it is special, or in the template, or in angle brackets."""
    text = token.content
    if token.special:
        return True
    is_tag = text.startswith("<") and text.endswith(">")
    return not text.isspace() and (is_tag or text in literals)


def _one_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _with_mark(found: re.Match[str]) -> str:
    return f"{found[0][:1]}{MARK}{found[0][1:]}"


def _marked(token: AddedToken, place: int) -> AddedToken:
    """A token with the mark after some of its characters."""
    return AddedToken(
        f"{token.content[:place]}{MARK}{token.content[place:]}",
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )
