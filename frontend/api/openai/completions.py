"""POST /v1/completions: from its body to `Service.generate`, and back to OpenAI's objects.

Owns the shape of completions, several prompts in one call, and scoring: ``echo`` with ``logprobs``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, cast

from frontend.api.openai.body import validated
from frontend.api.openai.generation import (
    FINISH_REASONS,
    AnswerSize,
    JsonArray,
    envelope,
    usage_of,
    with_free_id,
)
from frontend.api.openai.logprobs import (
    CompletionLogprobsBuilder,
    TokenTexts,
    text_offsets,
    token_ids,
)
from frontend.api.openai.merge import all_of, merged
from frontend.api.openai.parameters.common import generate_request
from frontend.api.openai.parameters.models import CompletionBody
from frontend.api.openai.response_models import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Envelope,
    FinishReason,
    Usage,
)
from frontend.errors import invalid_field
from frontend.processing.threads import offloaded
from frontend.records import Caller
from frontend.service import responses
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb

DEFAULT_MAX_TOKENS = 16
MAX_ID_CHARS = 120  # of a request's id, before a prompt's number


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompletionJob:
    """Completions of some prompts; see `frontend.api.openai.generation.Job`.

    Attributes:
        requests: one a prompt.
        echo: the prompt comes before the output.
        score_only: nothing else comes: the output, a token at least, is dropped.
    """

    requests: Sequence[pb.GenerateRequest]
    echo: bool
    score_only: bool
    stream: bool
    include_usage: bool
    names: Mapping[str, str]
    envelope: Envelope

    async def answer(self, service: Service, texts: TokenTexts, caller: Caller) -> Completion:
        """The whole answer.

        Raises:
            RequestError: see `chunks`.
        """
        prompts = self._prompts(service, texts, caller)
        size = AnswerSize()
        parts = await all_of([prompt.whole(size) for prompt in prompts])
        return {
            **self.envelope,
            "object": "text_completion",
            "choices": [choice for choices in parts for choice in choices],
            "usage": usage_of([prompt.usage for prompt in prompts]),
        }

    async def chunks(
        self, service: Service, texts: TokenTexts, caller: Caller
    ) -> AsyncGenerator[list[CompletionChunk], None]:
        """What is new of each choice, then usage of all prompts.

        Raises:
            RequestError: the key may not have as many requests as there are prompts.
        """
        prompts = self._prompts(service, texts, caller)
        streams = [prompt.parts() for prompt in prompts]
        stream = streams[0] if len(streams) == 1 else merged(streams)
        async with contextlib.aclosing(stream):
            async for choices in stream:
                yield [self._chunk([choice]) for choice in choices]
        if self.include_usage:
            yield [self._chunk([], usage_of([prompt.usage for prompt in prompts]))]

    def _prompts(self, service: Service, texts: TokenTexts, caller: Caller) -> list[_Prompt]:
        num_samples = sum(max(1, request.n) for request in self.requests)
        if caller.key and 0 < service.max_requests_per_key < num_samples:
            raise invalid_field(
                "prompt",
                f"has {len(self.requests)} entries with {num_samples} samples together, and a key "
                f"may have {service.max_requests_per_key} live ones; send fewer at once",
            )
        return [
            _Prompt(self, number, service, texts, caller) for number in range(len(self.requests))
        ]

    def _chunk(
        self, choices: list[CompletionChoice], usage: Usage | None = None
    ) -> CompletionChunk:
        chunk: CompletionChunk = {
            **self.envelope,  # type: ignore[typeddict-item]  # it has no usage
            "object": "text_completion",
            "choices": choices,
        }
        if self.include_usage:
            chunk["usage"] = usage
        return chunk


class _Prompt:
    """One prompt of a job, and the choices that come of it.

    Args:
        number: which of the job's prompts.

    Attributes:
        usage: of the prompt, once its last choice has ended.
    """

    def __init__(
        self, job: CompletionJob, number: int, service: Service, texts: TokenTexts, caller: Caller
    ) -> None:
        self.usage = pb.Usage()
        self._job = job
        self._request = request = job.requests[number]
        self._service, self._texts, self._caller = service, texts, caller
        self._num_choices = max(1, request.n)
        self._first_index = number * self._num_choices
        self._columns: dict[int, CompletionLogprobsBuilder] = {}
        self._num_echoed = 0  # characters

    def _events(self) -> AsyncGenerator[pb.GenerateResponse, None]:
        request = self._request
        return with_free_id(
            lambda: self._service.generate(request, self._caller, streams=self._job.stream), request
        )

    async def whole(self, size: AnswerSize) -> list[CompletionChoice]:
        """The prompt's choices, complete."""
        whole: dict[int, _WholeChoice] = {}
        async with contextlib.aclosing(self.parts()) as parts:
            async for choices in parts:
                for choice in choices:
                    index = choice["index"]
                    whole.setdefault(index, _WholeChoice(index, size)).add(choice)
                await asyncio.sleep(0)
        return [whole[index].choice() for index in sorted(whole)]

    async def parts(self) -> AsyncGenerator[list[CompletionChoice], None]:
        """What is new of the prompt's choices."""
        prompt = await self._read_prompt() if self._job.echo else ""
        async with contextlib.aclosing(self._events()) as events:
            async for event in events:
                if event.HasField("started"):
                    if self._job.echo:
                        async for echoes in self._echoes(prompt, event.started):
                            yield echoes
                elif event.HasField("finished"):
                    self._finish(event.finished)
                else:
                    choice = await self._output(event.delta)
                    if choice["text"] or choice["logprobs"] or choice["finish_reason"]:
                        yield [choice]

    async def _read_prompt(self) -> str:
        """The prompt's text. With logprobs its tokens must be known, so they are sent instead."""
        prompt = self._request.prompt
        if prompt.HasField("tokens"):
            ids = pb.DetokenizeRequest(token_ids=prompt.tokens.ids, keep_special_tokens=True)
            return (await self._service.detokenize(ids)).text
        text = prompt.text
        if self._request.output.logprobs and text:
            tokenized = await self._service.tokenize(pb.TokenizeRequest(text=text))
            prompt.tokens.ids.extend(tokenized.token_ids)
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
        if self._job.score_only:
            return self._choice(delta.index, "", None, "length" if reason else None)
        columns = None
        if self._request.output.logprobs and delta.token_ids:
            await self._texts.load(token_ids(delta.token_ids, delta.top_logprobs))
            tops = delta.top_logprobs or [None] * len(delta.token_ids)
            columns = self._columns_of(delta.index).columns(delta.token_ids, delta.logprobs, tops)
        return self._choice(delta.index, delta.text, columns, reason)

    def _columns_of(self, index: int) -> CompletionLogprobsBuilder:
        if index not in self._columns:
            top_logprobs = self._request.output.top_logprobs
            keep_special = self._request.output.keep_special_tokens
            self._columns[index] = CompletionLogprobsBuilder(
                self._texts, top_logprobs, self._service.decoder(keep_special), self._num_echoed
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
        if self._job.score_only:
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


def read_completion(values: Mapping[str, Any], request_id: str, model: str) -> CompletionJob:
    """The job of a body.

    Args:
        values: the body's JSON object.
        model: served name.

    Raises:
        RequestError: a parameter is of the wrong type, or parameters do not fit each other.
    """
    body = validated(CompletionBody, values)
    if body.suffix:
        raise invalid_field("suffix", "is not supported; leave it empty")
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    score_only = bool(body.echo) and max_tokens == 0
    request, names = generate_request(body, 1 if score_only else max_tokens)
    request.output.logprobs = body.logprobs is not None
    request.output.top_logprobs = body.logprobs or 0
    request.output.prompt_logprobs = bool(body.echo) and body.logprobs is not None
    return CompletionJob(
        requests=_per_prompt(request, body.prompt, request_id),
        echo=bool(body.echo),
        score_only=score_only,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        names={**names, "output.top_logprobs": "logprobs"},
        envelope=envelope("cmpl", request_id, model),
    )


def _per_prompt(
    request: pb.GenerateRequest, prompts: Sequence[str | list[int]], request_id: str
) -> list[pb.GenerateRequest]:
    requests = []
    for number, prompt in enumerate(prompts):
        own = pb.GenerateRequest()
        own.CopyFrom(request)
        own.request_id = request_id
        if len(prompts) > 1:
            own.request_id = f"{request_id[:MAX_ID_CHARS]}-{number}"
        if isinstance(prompt, str):
            own.prompt.text = prompt
        else:
            own.prompt.tokens.ids.extend(prompt)
            own.prompt.tokens.SetInParent()
        requests.append(own)
    return requests
