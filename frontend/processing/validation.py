"""What a request may ask for: ids, stops, samples and waiting, and what all checks share.

Owns the ranges of these fields of `switchyard.v1`, the paths of its fields in errors, and the turn
to `frontend.requests` types. `sampling_params.py`, `chat_template.py` and `structured_output.py`
check the rest; `frontend.bounds` has every bound. Knows nothing of queues or streams.
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
    """Refuse an id that is not 1 to 128 printable ASCII characters; empty asks for one."""
    if request_id and _REQUEST_ID.fullmatch(request_id) is None:
        raise invalid_field("request_id", "must be 1 to 128 printable ASCII characters")


def check_stops(asked: pb.StopConditions, vocab_size: int) -> None:
    """Refuse stop strings and ids that are too many, too long, empty or no token."""
    check_count(len(asked.stop), MAX_STOP_STRINGS, "stop_conditions.stop", "strings")
    for index, text in enumerate(asked.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise invalid_field(
                f"stop_conditions.stop[{index}]",
                f"has {len(text)} characters, must have 1 to {MAX_STOP_CHARS}",
            )
    field = "stop_conditions.stop_token_ids"
    check_count(len(asked.stop_token_ids), MAX_STOP_TOKEN_IDS, field, "ids")
    check_token_ids(asked.stop_token_ids, vocab_size, field)


def stop_conditions(
    asked: pb.StopConditions,
    *,
    prompt_tokens: int,
    max_context: int,
    cache_tokens: int,
    eos_token_ids: frozenset[int],
) -> StopConditions:
    """Stops in use; an unset max_new_tokens is what the prompt leaves of the context, or of the
    KV cache where that is smaller (the last token needs no place in it).

    Raises:
        RequestError: INVALID_ARGUMENT when the prompt and max_new_tokens exceed the context.
    """
    room = max_context - prompt_tokens
    assert room > 0, "refused by check_prompt"
    default = max(1, min(room, cache_tokens + 1 - prompt_tokens))
    max_new_tokens = asked.max_new_tokens if asked.HasField("max_new_tokens") else default
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
    if asked.min_new_tokens > max_new_tokens:
        raise invalid_field(
            "stop_conditions.min_new_tokens",
            f"is {asked.min_new_tokens}, more than max_new_tokens {max_new_tokens}",
        )
    return StopConditions(
        max_new_tokens=max_new_tokens,
        min_new_tokens=asked.min_new_tokens,
        stop=tuple(asked.stop),
        stop_token_ids=frozenset(asked.stop_token_ids),
        eos_token_ids=frozenset() if asked.ignore_eos else eos_token_ids,
        include_stop=asked.include_stop,
    )


def check_token_ids(ids: Any, vocab_size: int, field: str) -> None:
    """Refuse token ids (a packed repeated field) that are not below the vocabulary's size."""
    if not ids:
        return
    array = np.array(ids, dtype=np.uint32)
    index = int(array.argmax())
    if array[index] >= vocab_size:
        raise invalid_field(
            f"{field}[{index}]",
            f"is {array[index]}, must be below the vocabulary's size {vocab_size}",
        )


def check_count(count: int, most: int, field: str, things: str) -> None:
    """Refuse a repeated field, or a text, that is longer than it may be."""
    if count > most:
        raise invalid_field(field, f"has {count} {things}, at most {most} are taken")


def num_samples(asked: pb.GenerateRequest) -> int:
    """How many continuations are wanted."""
    if not asked.HasField("n"):
        return 1
    if not 1 <= asked.n <= MAX_SAMPLES:
        raise invalid_field("n", f"is {asked.n}, must be 1 to {MAX_SAMPLES}")
    return int(asked.n)


def queue_seconds(asked: pb.GenerateRequest) -> float:
    """How long the request may wait for admission; infinite when it does not say."""
    if not asked.HasField("max_queue_time"):
        return math.inf
    limit: duration_pb2.Duration = asked.max_queue_time
    seconds = limit.seconds + limit.nanos * 1e-9
    if seconds <= 0.0 or not 0 <= limit.nanos < 10**9:
        raise invalid_field("max_queue_time", f"is {seconds:g} s, must be above 0 s")
    return seconds
