"""What chat completions and completions share: a job, what it begins with, and usage.

Owns the words for how an answer ended. Knows no parameter.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from frontend.api.openai.logprobs import TokenTexts
from frontend.api.openai.response_models import Envelope, FinishReason, Usage
from frontend.records import Caller
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb

# An aborted answer is as incomplete as one that ran out of tokens, and clients know no other word.
FINISH_REASONS: Mapping[int, FinishReason] = {
    pb.FINISH_REASON_EOS: "stop",
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_ABORTED: "length",
}


class Job(Protocol):
    """One request.

    Attributes:
        stream: the client wants chunks.
        names: the client's names of fields of `switchyard.v1`, where they are not the usual ones.
    """

    @property
    def stream(self) -> bool: ...
    @property
    def names(self) -> Mapping[str, str]: ...

    def chunks(
        self, service: Service, texts: TokenTexts, caller: Caller
    ) -> AsyncGenerator[Sequence[Mapping[str, object]], None]:
        """Chunks as they come, those of one moment together. Closing it aborts the request."""
        ...

    async def answer(
        self, service: Service, texts: TokenTexts, caller: Caller
    ) -> Mapping[str, object]:
        """The whole answer. Cancelling it aborts the request."""
        ...


def envelope(prefix: str, request_id: str, model: str) -> Envelope:
    """The beginning of an answer whose id is the request's with a prefix."""
    return {
        "id": f"{prefix}-{request_id}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
    }


def usage_of(usages: Sequence[pb.Usage]) -> Usage:
    """OpenAI's usage of some requests together."""
    prompt = sum(each.prompt_tokens for each in usages)
    completion = sum(each.completion_tokens for each in usages)
    cached = sum(each.cached_prompt_tokens for each in usages)
    usage: Usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    reasoning = sum(each.reasoning_tokens for each in usages)
    if reasoning:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage
