"""Log-probabilities in OpenAI's two shapes, that of chat and that of completions.

Owns the text of single tokens, which both shapes need. Knows nothing of streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from frontend.api.openai.response_models import CompletionLogprobs, TokenLogprob, TopLogprob
from frontend.errors import Code, RequestError
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb

# JSON has no infinity; OpenAI sends this for a token that cannot come.
LEAST = -9999.0
# Tokens looked up before other tasks of the loop run.
_TURN = 256
_NO_TEXT = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """Makes text of one sequence's tokens as they come."""

    def push(self, token_id: int) -> str:
        """What this token completed."""
        ...

    def flush(self) -> str:
        """What waited for more tokens."""
        ...


class TokenTexts:
    """Text of single tokens, looked up once each: at most the vocabulary is kept."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._texts: dict[int, str] = {}

    def __getitem__(self, token_id: int) -> str:
        """The text of a token that was loaded."""
        return self._texts[token_id]

    async def load(self, ids: Iterable[int]) -> None:
        """Look up tokens that are not known yet; without a tokenizer they are their numbers."""
        for count, token_id in enumerate(set(ids) - self._texts.keys(), 1):
            self._texts[token_id] = await self._text(token_id)
            if count % _TURN == 0:
                await asyncio.sleep(0)

    async def _text(self, token_id: int) -> str:
        request = pb.DetokenizeRequest(token_ids=[token_id], keep_special_tokens=True)
        try:
            return (await self._service.detokenize(request)).text
        except RequestError as error:
            if error.code is not Code.FAILED_PRECONDITION:
                raise
            return f"token_id:{token_id}"


def token_ids(ids: Sequence[int], tops: Sequence[pb.TopLogprobs]) -> Iterable[int]:
    """Every id among some tokens and their alternatives."""
    yield from ids
    for top in tops:
        yield from top.token_ids


def chat_logprobs(delta: pb.Delta, num_top: int, texts: TokenTexts) -> list[TokenLogprob]:
    """One entry a token; at most ``num_top`` alternatives, best first."""
    tops = delta.top_logprobs or [pb.TopLogprobs()] * len(delta.token_ids)
    return [
        {
            **_entry(token, logprob, texts),
            "top_logprobs": [_entry(other, value, texts) for other, value in _best(top, num_top)],
        }
        for token, logprob, top in zip(delta.token_ids, delta.logprobs, tops, strict=True)
    ]


def _best(top: pb.TopLogprobs, num_top: int) -> Iterable[tuple[int, float]]:
    return zip(top.token_ids[:num_top], top.logprobs[:num_top], strict=True)


def _entry(token_id: int, logprob: float, texts: TokenTexts) -> TopLogprob:
    text = texts[token_id]
    # Part of a character has no text, and its bytes are not known here.
    known = None if _NO_TEXT in text else list(text.encode())
    return {"token": text, "logprob": max(logprob, LEAST), "bytes": known}


class CompletionLogprobsBuilder:
    """Makes the columns of one choice of completions; offsets go on from delta to delta.

    Args:
        num_top: alternatives a token; 0: none are reported.
        decoder: makes the output's text, whose places the offsets are; None without a tokenizer.
        offset: characters before the output.
    """

    def __init__(
        self, texts: TokenTexts, num_top: int, decoder: Decoder | None, offset: int
    ) -> None:
        self._texts = texts
        self._num_top = num_top
        self._decoder = decoder
        self._offset = offset

    def prompt(
        self, ids: Sequence[int], offsets: Sequence[int], started: pb.GenerateStarted, size: int
    ) -> Iterator[CompletionLogprobs]:
        """Columns of the prompt, whose first token has no log-probability, in pieces.

        Args:
            offsets: of the prompt's tokens in its text.
            size: tokens of a piece.
        """
        logprobs = [None, *started.prompt_logprobs]
        tops = [None, *(started.prompt_top_logprobs or [None] * (len(ids) - 1))]
        for start in range(0, len(ids), size):
            piece = slice(start, start + size)
            columns = self._columns(ids[piece], logprobs[piece], tops[piece])
            columns["text_offset"] = [*offsets[piece]]
            yield columns

    def columns(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float | None],
        tops: Sequence[pb.TopLogprobs | None],
    ) -> CompletionLogprobs:
        """Columns of some tokens; a token's own log-probability is among its alternatives."""
        columns = self._columns(ids, logprobs, tops)
        for token in ids:
            columns["text_offset"].append(self._offset)
            self._offset += len(self._decoder.push(token)) if self._decoder else 0
        return columns

    def _columns(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float | None],
        tops: Sequence[pb.TopLogprobs | None],
    ) -> CompletionLogprobs:
        """All columns but the offsets."""
        columns: CompletionLogprobs = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token, logprob, top in zip(ids, logprobs, tops, strict=True):
            text = self._texts[token]
            columns["tokens"].append(text)
            columns["token_logprobs"].append(None if logprob is None else max(logprob, LEAST))
            columns["top_logprobs"].append(self._alternatives(text, logprob, top))
        return columns

    def _alternatives(
        self, text: str, logprob: float | None, top: pb.TopLogprobs | None
    ) -> dict[str, float] | None:
        if logprob is None or not self._num_top:
            return None
        found: dict[str, float] = {}
        if top is not None:
            for other, value in _best(top, self._num_top):
                found.setdefault(self._texts[other], max(value, LEAST))  # the best of equal texts
        found.setdefault(text, max(logprob, LEAST))
        return found


def text_offsets(
    ids: Sequence[int], text: str, decoder_of: Callable[[bool], Decoder | None]
) -> list[int]:
    """Where in a text each of its tokens begins: what decoding in a row has given out before it.

    A token that goes on with a character begins where the character does.

    Args:
        decoder_of: a fresh decoder, which keeps special tokens or hides them.
    """
    for keep in (True, False):  # the text has special tokens, or the tokenizer added them to it
        decoder, offsets, parts, length = decoder_of(keep), [], [], 0
        for token in ids:
            offsets.append(length)
            parts.append(decoder.push(token) if decoder else "")
            length += len(parts[-1])
        if decoder is not None and "".join(parts) + decoder.flush() == text:
            break
    return [min(offset, len(text)) for offset in offsets]
