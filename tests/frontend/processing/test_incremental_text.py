"""Incremental text against decoding everything at once, and stop strings against str.find."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from frontend.processing.stop_strings import StopDecoder
from frontend.processing.text_decoders import ByteDecoder, WindowDecoder
from frontend.processing.tokenizer import Tokenizer
from tests.frontend.processing import qwen_like

# The session's tokenizer has fewer; ids above are unknown to it.
ids_strategy = st.lists(st.integers(0, 430), max_size=40)


def _joined(decoder: ByteDecoder | WindowDecoder | StopDecoder, ids: list[int]) -> str:
    parts = [decoder.push(token) for token in ids] + [decoder.flush()]
    for part in parts:
        part.encode("utf-8")
    return "".join(parts)


@given(ids=ids_strategy, keep=st.booleans())
def test_pieces_join_to_the_library_s_text(
    tokenizer: Tokenizer, ids: list[int], keep: bool
) -> None:
    decoder = tokenizer.decoder((), False, keep)
    assert isinstance(decoder, ByteDecoder)
    assert _joined(decoder, ids) == tokenizer.decode(ids, keep)


@given(text=st.text(max_size=30))
def test_characters_split_over_tokens_wait_for_their_last_byte(
    tokenizer: Tokenizer, text: str
) -> None:
    """One token a byte: text comes out exactly when a character is complete."""
    byte_ids = [tokenizer.encode(chr(0))[0]] * 256
    for token_id in range(tokenizer.vocab_size):
        decoder = tokenizer.decoder((), False, True)
        piece = decoder._pieces[token_id]  # type: ignore[attr-defined]
        data = piece.encode() if isinstance(piece, str) else piece
        if len(data) == 1:
            byte_ids[data[0]] = token_id
    decoder = tokenizer.decoder((), False, False)
    got = []
    for character in text:
        *first, last = [decoder.push(byte_ids[byte]) for byte in character.encode()]
        assert first == [""] * len(first)
        got.append(last)
    assert got == list(text)
    assert decoder.flush() == ""


def test_character_cut_off_at_the_end_is_flushed_as_the_library_does(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦀")
    assert len(ids) > 1
    decoder = tokenizer.decoder((), False, False)
    assert [decoder.push(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert decoder.flush() == "\ufffd" == tokenizer.decode(ids[:-1])


def _byte_fallback_tokenizer() -> Tokenizer:
    """Like a sentencepiece model: words with a leading mark, bytes for everything else."""
    words = ["<unk>", "▁the", "▁fox", "es", "▁", "a", "東", "<s>"]
    vocab = {word: place for place, word in enumerate(words)}
    vocab |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.add_special_tokens(["<s>"])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def _fallback_ids(text: str) -> list[int]:
    return [8 + byte for byte in text.encode()]


WORDS = st.one_of(
    st.integers(0, 7).map(lambda token: [token]), st.sampled_from("é東🙂x").map(_fallback_ids)
)


@given(pieces=st.lists(WORDS, max_size=15), keep=st.booleans())
def test_other_tokenizers_go_through_a_window(pieces: list[list[int]], keep: bool) -> None:
    tokenizer = _byte_fallback_tokenizer()
    ids = list(itertools.chain.from_iterable(pieces))
    decoder = tokenizer.decoder((), False, keep)
    assert isinstance(decoder, WindowDecoder)
    assert _joined(decoder, ids) == tokenizer.decode(ids, keep)


@pytest.mark.parametrize("by_window", [False, True])
def test_some_special_tokens_are_kept(by_window: bool) -> None:
    """The others are left out, and both are stops by their names."""
    library = qwen_like.library_tokenizer()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=library))
    if by_window:
        tokenizer._pieces = {}
    kept, hidden = "<|im_start|>", "<|im_end|>"
    ids = tokenizer.encode(f"the fox{hidden}{kept} é", False)
    decoder = tokenizer.decoder((), False, False, kept=[kept, "none"])
    assert _joined(decoder, ids) == f"the fox{kept} é"
    for stop in (kept, hidden):
        decoder = tokenizer.decoder((stop,), False, False, kept=[kept])
        assert (_joined(decoder, ids), decoder.matched) == ("the fox", stop)


def test_broken_bytes_do_not_wait_for_ever() -> None:
    tokenizer = _byte_fallback_tokenizer()
    decoder = tokenizer.decoder((), False, False)
    parts = [decoder.push(8 + 0x80) for _ in range(40)]
    assert sum(map(len, parts)) > 20
    assert set("".join(parts)) == {"\ufffd"}


class _Letters:
    """A decoder whose tokens are given strings."""

    matched = None

    def __init__(self, parts: list[str]) -> None:
        self._parts = parts

    def push(self, token_id: int) -> str:
        return self._parts[token_id]

    def flush(self) -> str:
        return ""


def _expected(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """The stop that is complete first, of those the longest, by str.find on the whole text."""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    end, minus_length, stop = min(found)
    return text[: end if include else end + minus_length], stop


def _certain(text: str, stops: list[str]) -> str:
    """The text without the longest end with which a stop string begins, tried one by one."""
    starts = [
        start for start in range(len(text)) for stop in stops if stop.startswith(text[start:])
    ]
    return text[: min(starts, default=len(text))]


PARTS = st.lists(st.text("abc", max_size=4), max_size=20)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=300)
@given(parts=PARTS, stops=STOPS, include=st.booleans())
def test_stop_strings_are_those_of_the_whole_text(
    parts: list[str], stops: list[str], include: bool
) -> None:
    decoder = StopDecoder(_Letters(parts), tuple(stops), include_stop=include)
    text, stop = _expected("".join(parts), tuple(stops), include)
    given_out = ""
    for token in range(len(parts)):
        given_out += decoder.push(token)
        assert text.startswith(given_out), "something leaked"
        if decoder.matched is None:
            assert given_out == _certain("".join(parts[: token + 1]), stops), "too much is held"
    assert given_out + decoder.flush() == text
    assert decoder.matched == stop
    assert decoder.flush() == ""


def test_match_is_known_with_its_last_character() -> None:
    decoder = StopDecoder(_Letters(["xa", "b", "c"]), ("abc", "bcd"), include_stop=False)
    assert [decoder.push(0), decoder.push(1), decoder.matched] == ["x", "", None]
    assert [decoder.push(2), decoder.matched] == ["", "abc"]


@given(text=st.text("ab", max_size=24), stops=st.lists(st.text("ab", min_size=1), min_size=1))
def test_what_is_held_back_does_not_depend_on_the_cut(text: str, stops: list[str]) -> None:
    """At every place in two, and a character at a time."""
    cuts = [[text[:cut], text[cut:]] for cut in range(len(text) + 1)] + [list(text)]
    expected = _expected(text, tuple(stops), include=False)
    for parts in cuts:
        decoder = StopDecoder(_Letters(parts), tuple(stops), include_stop=False)
        assert (_joined(decoder, [*range(len(parts))]), decoder.matched) == expected


def test_a_long_stop_string_holds_nothing_back_that_does_not_begin_it() -> None:
    decoder = StopDecoder(_Letters(["a", "xx", "b"]), ("x" * 256,), include_stop=False)
    assert [decoder.push(0), decoder.push(1), decoder.push(2)] == ["a", "", "xxb"]


def test_leading_tokens_are_not_searched() -> None:
    decoder = StopDecoder(_Letters(["ab", "a", "b"]), ("ab",), include_stop=True, min_tokens=2)
    assert [decoder.push(0), decoder.push(1)] == ["ab", "a"]
    assert decoder.push(2) + decoder.flush() == "b"
    assert decoder.matched is None


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_a_special_token_is_found_by_its_name(keep: bool, include: bool) -> None:
    """Also where its text is left out, and behind half a character."""
    tokenizer = _byte_fallback_tokenizer()
    ids = [1, 8 + 0xC3, 7]
    decoder = tokenizer.decoder(("<s>", "the fox"), include, keep)
    text = tokenizer.decode(ids[:2]) + "<s>" * include
    assert (_joined(decoder, ids), decoder.matched) == (text, "<s>")
    assert decoder.push(1) == ""
    early = tokenizer.decoder(("<s>",), include, keep, min_tokens=3)
    assert (_joined(early, ids), early.matched) == (tokenizer.decode(ids, keep), None)


@pytest.mark.parametrize("stops", [(), ("",), ("a", "")])
def test_empty_stop_strings_are_refused(stops: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="none of them empty"):
        StopDecoder(_Letters([]), stops, include_stop=False)
