"""Checks a request's id, stop conditions, number of samples and time in the queue.

Owns the ranges of these fields of `switchyard.v1` and the checks that other files share.
`sampling_params.py`, `chat_template.py` and `structured_output.py` check the rest;
`frontend.bounds` has every bound. Knows nothing of queues or streams.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from google.protobuf import duration_pb2

from frontend.bounds import MAX_SAMPLES, MAX_STOP_CHARS, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS
from frontend.errors import invalid_field
from frontend.requests.request import StopConditions
from switchyard.v1 import inference_pb2 as pb

_REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")


def check_request_id(request_id: str) -> None:
    """Refuses an id that is not 1 to 128 printable ASCII characters; an empty one is unset."""
    if request_id and _REQUEST_ID.fullmatch(request_id) is None:
        raise invalid_field("request_id", "must be 1 to 128 printable ASCII characters")


def check_stops(stops: pb.StopConditions, vocab_size: int) -> None:
    """Refuses stop strings and ids that are too many, too long, empty or no token."""
    check_count(len(stops.stop), MAX_STOP_STRINGS, "stop_conditions.stop", "strings")
    for index, text in enumerate(stops.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise invalid_field(
                f"stop_conditions.stop[{index}]",
                f"has {len(text)} characters, must have 1 to {MAX_STOP_CHARS}",
            )
    field = "stop_conditions.stop_token_ids"
    check_count(len(stops.stop_token_ids), MAX_STOP_TOKEN_IDS, field, "ids")
    check_token_ids(stops.stop_token_ids, vocab_size, field)


def stop_conditions(
    stops: pb.StopConditions,
    *,
    prompt_tokens: int,
    max_context: int,
    cache_tokens: int,
    eos_token_ids: frozenset[int],
) -> StopConditions:
    """The stop conditions in use. An unset max_new_tokens is what the prompt leaves of the context,
    or of the KV cache where that is smaller (the last token needs no place in it).

    Raises:
        RequestError: INVALID_ARGUMENT when the prompt and max_new_tokens exceed the context.
    """
    room = max_context - prompt_tokens
    assert room > 0, "refused by check_prompt"
    default = max(1, min(room, cache_tokens + 1 - prompt_tokens))
    max_new_tokens = stops.max_new_tokens if stops.HasField("max_new_tokens") else default
    if max_new_tokens < 1:
        raise invalid_field("stop_conditions.max_new_tokens", "is 0, must be at least 1")
    if max_new_tokens > room:
        raise invalid_field(
            "stop_conditions.max_new_tokens",
            f"{max_new_tokens} and {prompt_tokens} prompt tokens are "
            f"{prompt_tokens + max_new_tokens} tokens, more than the context of {max_context}; "
            f"ask for at most {room}",
            reason="PROMPT_TOO_LONG",
        )
    if stops.min_new_tokens > max_new_tokens:
        raise invalid_field(
            "stop_conditions.min_new_tokens",
            f"is {stops.min_new_tokens}, more than max_new_tokens {max_new_tokens}",
        )
    return StopConditions(
        max_new_tokens=max_new_tokens,
        min_new_tokens=stops.min_new_tokens,
        stop=tuple(stops.stop),
        stop_token_ids=frozenset(stops.stop_token_ids),
        eos_token_ids=frozenset() if stops.ignore_eos else eos_token_ids,
        include_stop=stops.include_stop,
    )


def check_token_ids(ids: Any, vocab_size: int, field: str) -> None:
    """Refuses token ids (a packed repeated field) that are not below the vocabulary's size."""
    if not ids:
        return
    array = np.array(ids, dtype=np.uint32)
    index = int(array.argmax())
    if array[index] >= vocab_size:
        raise invalid_field(
            f"{field}[{index}]",
            f"is {array[index]}, must be below the vocabulary's size {vocab_size}",
        )


def check_count(count: int, limit: int, field: str, things: str) -> None:
    """Refuses a repeated field, or a text, that is longer than its limit."""
    if count > limit:
        raise invalid_field(field, f"has {count} {things}, at most {limit} are taken")


def num_samples(request: pb.GenerateRequest) -> int:
    """The number of samples, 1 where the request does not say."""
    if not request.HasField("n"):
        return 1
    if not 1 <= request.n <= MAX_SAMPLES:
        raise invalid_field("n", f"is {request.n}, must be 1 to {MAX_SAMPLES}")
    return int(request.n)


def queue_seconds(request: pb.GenerateRequest) -> float:
    """Seconds the request may wait for admission, infinite where it does not say."""
    if not request.HasField("max_queue_time"):
        return math.inf
    limit: duration_pb2.Duration = request.max_queue_time
    seconds = limit.seconds + limit.nanos * 1e-9
    if seconds <= 0.0 or not 0 <= limit.nanos < 10**9:
        raise invalid_field("max_queue_time", f"is {seconds:g} s, must be above 0 s")
    return seconds
