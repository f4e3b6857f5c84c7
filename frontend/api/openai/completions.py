"""POST /v1/completions: from its body to `Service.generate`, and back to OpenAI's objects.

Owns several prompts in one call, and scoring: ``echo`` with ``logprobs``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from frontend.api.http.long_json import AnswerSize
from frontend.api.http.values import validated
from frontend.api.openai.completion_choices import ChoiceParts, PromptChoices
from frontend.api.openai.generation import envelope, usage_of
from frontend.api.openai.logprobs import (
    TokenTexts,
)
from frontend.api.openai.merge import all_of, merged
from frontend.api.openai.parameters.common import generate_request, refuse_unsupported
from frontend.api.openai.parameters.models import CompletionBody
from frontend.api.openai.response_models import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    Envelope,
    Usage,
)
from frontend.errors import invalid_field
from frontend.records import Caller
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb

DEFAULT_MAX_TOKENS = 16
MAX_ID_CHARS = 120  # of a request's id, before a prompt's number


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompletionJob:
    """Completions of some prompts; see `frontend.api.openai.generation.Job`.

    Attributes:
        requests: one a prompt.
    """

    requests: Sequence[pb.GenerateRequest]
    parts: ChoiceParts
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
        streams = [prompt.parts(AnswerSize()) for prompt in prompts]
        stream = streams[0] if len(streams) == 1 else merged(streams)
        async with contextlib.aclosing(stream):
            async for choices in stream:
                yield [self._chunk([choice]) for choice in choices]
        if self.include_usage:
            yield [self._chunk([], usage_of([prompt.usage for prompt in prompts]))]

    def _prompts(self, service: Service, texts: TokenTexts, caller: Caller) -> list[PromptChoices]:
        num_samples = sum(max(1, request.n) for request in self.requests)
        if caller.key and 0 < service.max_requests_per_key < num_samples:
            raise invalid_field(
                "prompt",
                f"has {len(self.requests)} entries with {num_samples} samples together, and a key "
                f"may have {service.max_requests_per_key} live ones; send fewer at once",
            )
        return [
            PromptChoices(request, number, self.parts, service, texts, caller, streams=self.stream)
            for number, request in enumerate(self.requests)
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


def read_completion(values: Mapping[str, Any], request_id: str, model: str) -> CompletionJob:
    """The job of a body.

    Args:
        values: the body's JSON object.
        model: served name.

    Raises:
        RequestError: a parameter is of the wrong type, or parameters do not fit each other.
    """
    refuse_unsupported(values, "completions")
    body = validated(CompletionBody, values)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    score_only = bool(body.echo) and max_tokens == 0
    request, names = generate_request(body, 1 if score_only else max_tokens)
    output, num_top = request.output, body.logprobs or 0
    output.logprobs = body.logprobs is not None
    output.top_logprobs = max(output.top_logprobs, num_top)
    output.prompt_logprobs |= bool(body.echo) and output.logprobs
    return CompletionJob(
        requests=_per_prompt(request, body.prompt, request_id),
        parts=ChoiceParts(
            echo=bool(body.echo),
            score_only=score_only,
            num_top=num_top,
            num_prompt_top=body.prompt_logprobs,
        ),
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
