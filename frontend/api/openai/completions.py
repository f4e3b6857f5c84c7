"""POST /v1/completions: from its body to `Service.generate`, and back in OpenAI's chunks.

Owns the shape of completions, several prompts in one call, and scoring: ``echo`` with ``logprobs``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from frontend.api.openai.job import (
    FINISH_REASONS,
    Chunk,
    read_streaming,
    usage_object,
)
from frontend.api.openai.json_fields import Fields, is_ids
from frontend.api.openai.logprobs import CompletionLogprobs, TokenTexts, token_ids
from frontend.api.openai.merge import merged, with_free_id
from frontend.api.openai.parameters import generate_request
from frontend.bounds import MAX_PROMPTS, MAX_TOP_LOGPROBS
from frontend.errors import invalid_field
from frontend.records import Caller
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb

DEFAULT_MAX_TOKENS = 16
MAX_ID_CHARS = 120  # of a request's id, before a prompt's number

Choice = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompletionJob:
    """Completions of some prompts; see `frontend.api.openai.job.Job`.

    Attributes:
        asked: one request a prompt.
        echo: the prompt comes first.
        score_only: nothing else comes: what has to be generated is dropped.
    """

    asked: Sequence[pb.GenerateRequest]
    echo: bool
    score_only: bool
    stream: bool
    include_usage: bool
    names: Mapping[str, str]
    head: Mapping[str, Any]

    async def chunks(
        self, service: Service, texts: TokenTexts, caller: Caller
    ) -> AsyncGenerator[list[Chunk], None]:
        """What is new of each choice, then usage of all prompts.

        Raises:
            RequestError: at once, where the key may not have as many requests as there are prompts.
        """
        if caller.key and 0 < service.max_requests_per_key < len(self.asked):
            raise invalid_field(
                "prompt",
                f"has {len(self.asked)} entries, each of them a request, and a key may have "
                f"{service.max_requests_per_key} live ones; send fewer at once",
            )
        usages: list[pb.Usage] = []
        parts = [_Part(self, index, texts) for index in range(len(self.asked))]
        if len(parts) == 1:
            async with contextlib.aclosing(parts[0].choices(service, caller, usages)) as one:
                async for choices in one:
                    yield self._chunks(choices)
        else:
            streams = [part.choices(service, caller, usages) for part in parts]
            async with contextlib.aclosing(merged(streams)) as several:
                async for _, choices in several:
                    yield self._chunks(choices)
        if self.include_usage or not self.stream:
            yield [{**self.head, "choices": [], "usage": usage_object(usages)}]

    def _chunks(self, choices: list[Choice]) -> list[Chunk]:
        usage = {"usage": None} if self.include_usage else {}
        return [{**self.head, "choices": [choice], **usage} for choice in choices]

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """The choices' parts, added up."""
        choices: dict[int, Choice] = {}
        for chunk in chunks:
            for part in chunk["choices"]:
                choice = choices.setdefault(part["index"], {**part, "text": "", "logprobs": None})
                choice["text"] += part["text"]
                choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
                if part["logprobs"]:
                    columns = choice["logprobs"] or {name: [] for name in part["logprobs"]}
                    choice["logprobs"] = {
                        name: values + part["logprobs"][name] for name, values in columns.items()
                    }
        ordered = [choices[index] for index in sorted(choices)]
        return {**self.head, "choices": ordered, "usage": chunks[-1]["usage"]}


class _Part:
    """One prompt of a job on its way.

    Args:
        number: which of the job's prompts.
    """

    def __init__(self, job: CompletionJob, number: int, texts: TokenTexts) -> None:
        self._job = job
        self._asked = job.asked[number]
        self._num_choices = max(1, self._asked.n)
        self._first = number * self._num_choices
        self._texts = texts
        self._logprobs: list[CompletionLogprobs] = []

    async def choices(
        self, service: Service, caller: Caller, usages: list[pb.Usage]
    ) -> AsyncGenerator[list[Choice], None]:
        """What is new of the prompt's choices; its usage goes to ``usages`` at the end."""
        asked = self._asked
        prompt = await self._read_prompt(service) if self._job.echo else ""
        events = with_free_id(
            lambda: service.generate(asked, caller, streams=self._job.stream), asked
        )
        async with contextlib.aclosing(events):
            async for event in events:
                if event.HasField("started"):
                    self._logprobs = [
                        CompletionLogprobs(self._texts, asked.output.top_logprobs)
                        for _ in range(self._num_choices)
                    ]
                    if self._job.echo:
                        yield await self._echo(prompt, event.started)
                elif event.HasField("delta"):
                    choices = await self._delta(event.delta)
                    if choices:
                        yield choices
                else:
                    usage = event.finished.usage
                    usage.completion_tokens *= not self._job.score_only
                    usages.append(usage)

    async def _read_prompt(self, service: Service) -> str:
        """The prompt's text. With logprobs its tokens must be known, so they are sent instead."""
        prompt = self._asked.prompt
        if prompt.HasField("tokens"):
            ids = pb.DetokenizeRequest(token_ids=prompt.tokens.ids, keep_special_tokens=True)
            return (await service.detokenize(ids)).text
        text = prompt.text
        if self._asked.output.logprobs and text:
            tokenized = await service.tokenize(pb.TokenizeRequest(text=text))
            prompt.tokens.ids.extend(tokenized.token_ids)
        return text

    async def _echo(self, prompt: str, started: pb.GenerateStarted) -> list[Choice]:
        """The prompt, at the beginning of each choice."""
        ids = self._asked.prompt.tokens.ids
        scored = self._asked.output.logprobs
        if scored:
            await self._texts.load(token_ids(ids, started.prompt_top_logprobs))
        return [
            self._choice(index, prompt, each.prompt(ids, started) if scored else None)
            for index, each in enumerate(self._logprobs)
        ]

    async def _delta(self, delta: pb.Delta) -> list[Choice]:
        reason = FINISH_REASONS.get(delta.finish_reason)
        if self._job.score_only:
            return [self._choice(delta.index, "", None, "length")] if reason else []
        columns = None
        if self._asked.output.logprobs and delta.token_ids:
            await self._texts.load(token_ids(delta.token_ids, delta.top_logprobs))
            tops = delta.top_logprobs or [None] * len(delta.token_ids)
            columns = self._logprobs[delta.index].columns(delta.token_ids, delta.logprobs, tops)
        if not (delta.text or columns or reason):
            return []
        return [self._choice(delta.index, delta.text, columns, reason)]

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None,
        finish_reason: str | None = None,
    ) -> Choice:
        return {
            "index": self._first + index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }


def read_completion(fields: Fields, request_id: str, model: str) -> CompletionJob:
    """The job of a body.

    Args:
        model: served name.

    Raises:
        RequestError: a parameter is of the wrong type, or asks for what there is not.
    """
    if fields.text("suffix"):
        raise fields.wrong("suffix", "is not supported; leave it empty")
    stream, include_usage = read_streaming(fields)
    echo = fields.flag("echo")
    max_tokens = fields.integer("max_tokens")
    if max_tokens is None:
        max_tokens = DEFAULT_MAX_TOKENS
    score_only = echo and max_tokens == 0
    asked = generate_request(fields, 1 if score_only else max_tokens)
    top = fields.integer("logprobs", high=MAX_TOP_LOGPROBS)
    asked.output.logprobs = top is not None
    asked.output.top_logprobs = top or 0
    asked.output.prompt_logprobs = echo and top is not None
    return CompletionJob(
        asked=_per_prompt(asked, _prompts(fields), request_id),
        echo=echo,
        score_only=score_only,
        stream=stream,
        include_usage=include_usage,
        names={"output.top_logprobs": "logprobs"},
        head={
            "id": f"cmpl-{request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        },
    )


def _prompts(fields: Fields) -> list[str | list[int]]:
    """A string, token ids, or a list of either."""
    given = fields.raw("prompt")
    if isinstance(given, str) or (given and is_ids(given)):
        return [given]
    if not isinstance(given, list) or not given:
        raise fields.wrong("prompt", "must be a string, token ids, or a list of either")
    if len(given) > MAX_PROMPTS:
        raise fields.wrong("prompt", f"has {len(given)} prompts, at most {MAX_PROMPTS} are taken")
    for index, each in enumerate(given):
        if not isinstance(each, str) and not is_ids(each):
            raise fields.wrong(f"prompt[{index}]", "must be a string or a list of token ids")
    return given


def _per_prompt(
    asked: pb.GenerateRequest, prompts: Sequence[str | list[int]], request_id: str
) -> list[pb.GenerateRequest]:
    requests = []
    for number, prompt in enumerate(prompts):
        request = pb.GenerateRequest()
        request.CopyFrom(asked)
        several = len(prompts) > 1
        request.request_id = f"{request_id[:MAX_ID_CHARS]}-{number}" if several else request_id
        if isinstance(prompt, str):
            request.prompt.text = prompt
        else:
            request.prompt.tokens.ids.extend(prompt)
            request.prompt.tokens.SetInParent()
        requests.append(request)
    return requests
