"""Checks a request's id, its time in the queue and its prompt's length, and what many fields share:
how long a list may be, and that token ids are in the vocabulary.

`sampling_params.py`, `chat_template.py` and `structured_output.py` check their own fields with
these; `frontend.bounds` has every bound. Knows nothing of queues or streams.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from google.protobuf import duration_pb2

from frontend.errors import Code, RequestError, invalid_field
from switchyard.v1 import inference_pb2 as pb

_REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")


def check_request_id(request_id: str) -> None:
    """Refuses an id that is not 1 to 128 printable ASCII characters; an empty one is unset."""
    if request_id and _REQUEST_ID.fullmatch(request_id) is None:
        raise invalid_field("request_id", "must be 1 to 128 printable ASCII characters")


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


def queue_seconds(request: pb.GenerateRequest) -> float:
    """Seconds the request may wait for admission, infinite where it does not say."""
    if not request.HasField("max_queue_time"):
        return math.inf
    limit: duration_pb2.Duration = request.max_queue_time
    seconds = limit.seconds + limit.nanos * 1e-9
    if seconds <= 0.0 or not 0 <= limit.nanos < 10**9:
        raise invalid_field("max_queue_time", f"is {seconds:g} s, must be above 0 s")
    return seconds


def check_prompt(num_prompt: int, max_model_len: int) -> None:
    """Refuse a prompt that leaves no room for a single token.

    Raises:
        RequestError: INVALID_ARGUMENT with the numbers.
    """
    if num_prompt >= max_model_len:
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"the prompt's {num_prompt} tokens leave no room in the context of {max_model_len}; "
            f"send at most {max_model_len - 1}",
            reason="PROMPT_TOO_LONG",
            field="prompt",
        )
