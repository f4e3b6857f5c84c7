"""What an answer must be: a status of the contract, a whole stream, HTTP that admits no bug.

Owns the oracle of one answer. Knows nothing of how it was asked for.
"""

from __future__ import annotations

import base64
import urllib.parse
from typing import Any

import grpc

from switchyard.v1 import inference_pb2 as pb
from tests.faults.fuzz.calls import ROUTERS_SERVICE
from tests.faults.fuzz.stack import VOCAB_SIZE

# INTERNAL and UNKNOWN are bugs; UNAVAILABLE would be a lost group, and there is none.
ALLOWED = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
# gRPC takes no more metadata; past it the client sees another status.
MAX_TRAILER_BYTES = 16 << 10


class FindingError(AssertionError):
    """The oracle was not kept to."""


def check_status(status: Any) -> None:
    """A refusal is one the contract knows, in one line, and fits what gRPC carries."""
    if status.code not in ALLOWED:
        raise FindingError(f"{status.code.name}: {status.details}")
    if not status.details or "\n" in status.details:
        raise FindingError(f"{status.code.name} is told in no line, or in several")
    size = len(urllib.parse.quote(status.details))
    for key, value in status.trailing_metadata:
        size += len(key) + len(base64.b64encode(value) if isinstance(value, bytes) else value)
    if size > MAX_TRAILER_BYTES:
        raise FindingError(f"{status.code.name} takes {size} bytes of trailers")


def check_stream(method: str, sent: list[Any]) -> None:
    """A stream begins and ends, and its tokens, with those that its caller had, are its usage's."""
    if method.startswith(ROUTERS_SERVICE):
        whole = [each.complete for each in sent if each.HasField("complete")]
        if not whole or any(len(each.output_ids) != each.completion_tokens for each in whole):
            raise FindingError(f"a router's stream of {len(sent)} messages is not whole")
        return
    events = [each.response if isinstance(each, pb.ChatResponse) else each for each in sent]
    kinds = [event.WhichOneof("event") for event in events]
    if kinds[:1] != ["started"] or kinds[-1] != "finished" or len(kinds) < 3:
        raise FindingError(f"a stream is {kinds[:2]} … {kinds[-2:]}")
    tokens = [token for event in events for token in event.delta.token_ids]
    num_tokens = events[0].started.generated_tokens + len(tokens)
    if num_tokens != events[-1].finished.usage.completion_tokens:
        raise FindingError(f"{len(tokens)} tokens, usage is {events[-1].finished.usage}")
    if any(token >= VOCAB_SIZE for token in tokens):
        raise FindingError("a token is none of the vocabulary")


def tokens_of(sent: list[Any]) -> dict[int, list[int]]:
    """Tokens of each sequence of a stream of GenerateResponses."""
    found: dict[int, list[int]] = {}
    for event in sent:
        found.setdefault(event.delta.index, []).extend(event.delta.token_ids)
    return found


def check_http(sent: list[dict[str, Any]]) -> None:
    """A response is whole, and no 5xx but 503."""
    kinds = [message["type"] for message in sent]
    if kinds[:1] != ["http.response.start"] or len(kinds) < 2 or sent[-1].get("more_body"):
        raise FindingError(f"a response is {kinds}")
    status = sent[0]["status"]
    body = b"".join(message["body"] for message in sent[1:])
    if not (200 <= status < 300 or 400 <= status < 500 or status == 503):
        raise FindingError(f"HTTP {status}: {body[:200]!r}")
    if b"internal error" in body:
        raise FindingError(f"HTTP {status} and then: {body[-200:]!r}")
