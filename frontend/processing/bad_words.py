"""Words that never come: a token of its own is banned, the last token of several where the others
were drawn before it.

Owns which tokens spell a word: those it is cut into alone, and behind a space. Knows nothing of
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from frontend.bounds import MAX_BAD_WORD_CHARS, MAX_BAD_WORDS
from frontend.errors import invalid_field, too_many
from frontend.processing.threads import in_thread

Spelling = tuple[int, ...]
Encode = Callable[[str, bool], list[int]]


class WordFilter:
    """Keeps words of several tokens out of one sequence's output.

    A `frontend.requests.request.Matcher`.

    Args:
        spellings: tokens of the words, each two or more.
        vocab_size: the model's.
    """

    __slots__ = ("_by_second_last", "_longest", "_recent", "_vocab_size")

    def __init__(self, spellings: Iterable[Spelling], vocab_size: int) -> None:
        self._by_second_last: dict[int, list[Spelling]] = {}
        for spelling in spellings:
            self._by_second_last.setdefault(spelling[-2], []).append(spelling)
        listed = self._by_second_last.values()
        self._longest = max(len(spelling) for words in listed for spelling in words)
        self._recent: Spelling = ()
        self._vocab_size = vocab_size

    is_stopped = False

    def mask(self) -> bytes:
        """Tokens that may come next, as bits; nothing where all may."""
        last = self._recent[-1:]
        ends = [
            spelling[-1]
            for token in last
            for spelling in self._by_second_last.get(token, ())
            if self._recent[-len(spelling) + 1 :] == spelling[:-1]
        ]
        if not ends:
            return b""
        mask = bytearray(b"\xff" * ((self._vocab_size + 31) // 32 * 4))
        for token in ends:
            mask[token >> 3] &= ~(1 << (token & 7))
        return bytes(mask)

    def mask_ahead(self, num_unknown: int) -> None:
        """A mask may depend on the token before."""

    def accept(self, token_id: int) -> None:
        """Goes on past a token."""
        self._recent = (*self._recent, token_id)[1 - self._longest :]

    def advance(self, token_ids: Sequence[int]) -> int:
        """Goes on past tokens of an earlier stream, whatever they are."""
        for token in token_ids:
            self.accept(token)
        return len(token_ids)


async def spellings(encode: Encode, words: Sequence[str], vocab_size: int) -> list[Spelling]:
    """Tokens of each word, once or twice; those that the model knows.

    Args:
        encode: the tokenizer's; False: without the special tokens that it adds.
        vocab_size: the model's.

    Raises:
        RequestError: INVALID_ARGUMENT: words are too many, too long or empty.
    """
    field = "sampling.bad_words"
    if len(words) > MAX_BAD_WORDS:
        raise too_many(field, len(words), MAX_BAD_WORDS, "words")
    for place, word in enumerate(words):
        if not 1 <= len(word) <= MAX_BAD_WORD_CHARS:
            raise invalid_field(
                f"{field}[{place}]",
                f"has {len(word)} characters, must have 1 to {MAX_BAD_WORD_CHARS}",
            )
    found = await in_thread(_spellings, encode, words)
    return [each for each in found if max(each) < vocab_size]


def _spellings(encode: Encode, words: Sequence[str]) -> dict[Spelling, None]:
    found: dict[Spelling, None] = {}
    for word in words:
        bare = word.lstrip() or word
        alone, spaced = (tuple(encode(before + bare, False)) for before in ("", " "))
        found[alone] = None
        if spaced[-len(alone) :] != alone:  # else there is no way to it but past the other
            found[spaced] = None
    found.pop((), None)
    return found
