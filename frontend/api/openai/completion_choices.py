"""The choices that come of one prompt of /v1/completions, as parts of a stream or whole.

Owns the prompt's text and log-probabilities before the output's. Knows nothing of other prompts.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

from frontend.api.http.generation import with_free_id
from frontend.api.http.long_json import AnswerSize, JsonArray
from frontend.api.openai.generation import FINISH_REASONS
from frontend.api.openai.logprobs import (
    CompletionLogprobsBuilder,
    TokenTexts,
    text_offsets,
    token_ids,
)
from frontend.api.openai.prompt_logprobs import prompt_logprobs
from frontend.api.openai.response_models import (
    CompletionChoice,
    CompletionLogprobs,
    FinishReason,
    PromptLogprobs,
)
from frontend.processing.preprocess import offloaded
from frontend.processing.threads import in_pieces
from frontend.records import Caller
from frontend.service import responses
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceParts:
    """What a choice holds beside the output's text.

    Attributes:
        echo: the prompt comes before the output.
        score_only: nothing else comes: the output, a token at least, is dropped.
        num_top, num_prompt_top: alternatives of a token in ``logprobs``, and in
            ``prompt_logprobs``; None: these are not asked for.
    """

    echo: bool
    score_only: bool
    num_top: int
    num_prompt_top: int | None


class PromptChoices:
    """One prompt, and the choices that come of it.

    Args:
        number: which of the call's prompts.
        streams: they are sent as they come.

    Attributes:
        usage: of the prompt, once its last choice has ended.
    """

    def __init__(
        self,
        request: pb.GenerateRequest,
        number: int,
        parts: ChoiceParts,
        service: Service,
        texts: TokenTexts,
        caller: Caller,
        *,
        streams: bool,
    ) -> None:
        self.usage = pb.Usage()
        self._request = request
        self._parts = parts
        self._service, self._texts, self._caller = service, texts, caller
        self._streams = streams
        self._num_choices = max(1, request.n)
        self._first_index = number * self._num_choices
        self._columns: dict[int, CompletionLogprobsBuilder] = {}
        self._num_echoed = 0  # characters
        self._prompt_logprobs: PromptLogprobs | None = None

    def _events(self) -> AsyncGenerator[pb.GenerateResponse, None]:
        request = self._request
        return with_free_id(
            lambda: self._service.generate(request, self._caller, streams=self._streams), request
        )

    async def whole(self, size: AnswerSize) -> list[CompletionChoice]:
        """The prompt's choices, complete."""
        whole: dict[int, _WholeChoice] = {}
        async with contextlib.aclosing(self.parts(size)) as parts:
            async for choices in parts:
                for choice in choices:
                    index = choice["index"]
                    whole.setdefault(index, _WholeChoice(index, size)).add(choice)
                await asyncio.sleep(0)
        choices = [whole[index].choice() for index in sorted(whole)]
        if self._prompt_logprobs is not None:
            for choice in choices:
                choice["prompt_logprobs"] = self._prompt_logprobs
        return choices

    async def parts(self, size: AnswerSize) -> AsyncGenerator[list[CompletionChoice], None]:
        """What is new of the prompt's choices.

        Args:
            size: counts the prompt's log-probabilities, which are no part of a stream.
        """
        prompt = await self._read_prompt() if self._parts.echo else ""
        async with contextlib.aclosing(self._events()) as events:
            async for event in events:
                if event.HasField("started"):
                    await self._read_prompt_logprobs(event.started, size)
                    if self._parts.echo:
                        async for echoes in self._echoes(prompt, event.started):
                            yield echoes
                elif event.HasField("finished"):
                    self._finish(event.finished)
                else:
                    choice = await self._output(event.delta)
                    if choice["text"] or choice["logprobs"] or choice["finish_reason"]:
                        yield [choice]

    async def _read_prompt_logprobs(self, started: pb.GenerateStarted, size: AnswerSize) -> None:
        if self._parts.num_prompt_top is not None:
            array = await prompt_logprobs(
                started, self._parts.num_prompt_top, self._request.output, self._texts, size
            )
            size.count((self._num_choices - 1) * sum(map(len, array.pieces)))
            self._prompt_logprobs = cast(PromptLogprobs, array)

    async def _read_prompt(self) -> str:
        """The prompt's text. With logprobs its tokens must be known, so they are sent instead."""
        prompt = self._request.prompt
        if prompt.HasField("tokens"):
            ids = pb.DetokenizeRequest(token_ids=prompt.tokens.ids, keep_special_tokens=True)
            return (await self._service.detokenize(ids)).text
        text = prompt.text
        if self._request.output.logprobs and text:
            async for piece in in_pieces(await self._service.tokenize_text(text)):
                prompt.tokens.ids.extend(piece)
        return text

    async def _echoes(
        self, prompt: str, started: pb.GenerateStarted
    ) -> AsyncGenerator[list[CompletionChoice], None]:
        """The prompt, as the beginning of each choice; its columns in parts."""
        indices = range(self._num_choices)
        if not self._request.output.logprobs:
            yield [self._choice(index, prompt, None) for index in indices]
            return
        self._num_echoed = len(prompt)
        ids = self._request.prompt.tokens.ids
        await self._texts.load(token_ids(ids, started.prompt_top_logprobs))
        offsets = await offloaded(len(ids), text_offsets, ids, prompt, self._service.decoder)
        size = responses.logprobs_at_once(self._request.output)
        for columns in self._columns_of(0).prompt(ids, offsets, started, size):
            yield [self._choice(index, prompt, columns) for index in indices]
            prompt = ""

    async def _output(self, delta: pb.Delta) -> CompletionChoice:
        """The new part of a choice; nothing but the end of one where the prompt is scored alone."""
        reason = FINISH_REASONS.get(delta.finish_reason)
        if self._parts.score_only:
            return self._choice(delta.index, "", None, "length" if reason else None)
        columns = None
        if self._request.output.logprobs and delta.token_ids:
            await self._texts.load(token_ids(delta.token_ids, delta.top_logprobs))
            tops = delta.top_logprobs or [None] * len(delta.token_ids)
            columns = self._columns_of(delta.index).columns(delta.token_ids, delta.logprobs, tops)
        return self._choice(delta.index, delta.text, columns, reason)

    def _columns_of(self, index: int) -> CompletionLogprobsBuilder:
        if index not in self._columns:
            keep_special = self._request.output.keep_special_tokens
            decoder = self._service.decoder(keep_special)
            self._columns[index] = CompletionLogprobsBuilder(
                self._texts, self._parts.num_top, decoder, self._num_echoed
            )
        return self._columns[index]

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: CompletionLogprobs | None,
        finish_reason: FinishReason | None = None,
    ) -> CompletionChoice:
        return {
            "index": self._first_index + index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }

    def _finish(self, finished: pb.GenerateFinished) -> None:
        self.usage = finished.usage
        if self._parts.score_only:
            self.usage.completion_tokens = 0


class _WholeChoice:
    """A choice of an answer that is no stream, put together from its parts."""

    def __init__(self, index: int, size: AnswerSize) -> None:
        self._index, self._size = index, size
        self._texts: list[str] = []
        self._columns: dict[str, JsonArray] = {}
        self._finish_reason: FinishReason | None = None

    def add(self, part: CompletionChoice) -> None:
        """Go on with a part.

        Raises:
            RequestError: the answer has become too large.
        """
        self._size.count(len(part["text"]))
        self._texts.append(part["text"])
        columns: Mapping[str, Any] = part["logprobs"] or {}
        for name, column in columns.items():
            self._columns.setdefault(name, JsonArray(self._size)).extend(column)
        self._finish_reason = part["finish_reason"]

    def choice(self) -> CompletionChoice:
        """All of it."""
        return {
            "index": self._index,
            "text": "".join(self._texts),
            "logprobs": cast(CompletionLogprobs, self._columns) if self._columns else None,
            "finish_reason": self._finish_reason,
        }
