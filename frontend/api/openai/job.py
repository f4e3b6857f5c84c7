"""What chat and completions have in common: a request read from its body, answered in chunks.

Owns the parameters of streaming, the words for how an answer ended, and usage. The whole answer is
made of the same chunks that a stream sends.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from frontend.api.openai.json_fields import Fields
from frontend.api.openai.logprobs import TokenTexts
from frontend.records import Caller
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb

Chunk = dict[str, Any]

# An answer that was aborted is as incomplete as one that ran out of tokens, and clients know no
# other word for that.
FINISH_REASONS: Mapping[int, str] = {
    pb.FINISH_REASON_EOS: "stop",
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_ABORTED: "length",
}


class Job(Protocol):
    """One request.

    Attributes:
        stream: its client wants chunks.
        names: what it called fields of `switchyard.v1`, where that is not the usual name.
    """

    @property
    def stream(self) -> bool: ...
    @property
    def names(self) -> Mapping[str, str]: ...

    def chunks(
        self, service: Service, texts: TokenTexts, caller: Caller
    ) -> AsyncGenerator[list[Chunk], None]:
        """Chunks as they come, those of one moment together. Closing it aborts the request."""
        ...

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """The answer that does not stream."""
        ...


def read_streaming(fields: Fields) -> tuple[bool, bool]:
    """``stream``, and whether the client wants usage at its end."""
    stream = fields.flag("stream")
    options = fields.child("stream_options")
    return stream, options is not None and options.flag("include_usage")


def usage_object(usages: Sequence[pb.Usage]) -> dict[str, Any]:
    """OpenAI's usage of some requests together."""
    prompt = sum(each.prompt_tokens for each in usages)
    completion = sum(each.completion_tokens for each in usages)
    cached = sum(each.cached_prompt_tokens for each in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
