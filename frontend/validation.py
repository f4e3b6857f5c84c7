"""What a request may ask for: every check that needs no tokenizer and no engine.

Owns the ranges and bounds of `switchyard.v1`, the paths of its fields in errors, and the turn from
messages to `frontend.request` types. Knows nothing of queues, streams or transports.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from google.protobuf import duration_pb2

from frontend.errors import Code, RequestError, invalid_field
from frontend.model_folder import SamplingDefaults
from frontend.request import SamplingParams, StopConditions
from switchyard.v1 import inference_pb2 as pb

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 256
MAX_MESSAGES = 1024
MAX_TEMPLATE_KWARGS_CHARS = 16_384
# Colder than this is greedy: dividing logits by less than it leaves the range of fp32.
MIN_TEMPERATURE = 1e-5

# Arguments of transformers' apply_chat_template that are not the caller's to set: another template
# would be code, and the rest changes what is returned.
_RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    }
)

_T = TypeVar("_T")
_REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")
_ROLES: Mapping[int, str] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}


def check_request_id(request_id: str, path: str = "") -> None:
    """Refuse an id that is not 1 to 128 printable ASCII characters; empty asks for one."""
    if request_id and _REQUEST_ID.fullmatch(request_id) is None:
        raise invalid_field(f"{path}request_id", "must be 1 to 128 printable ASCII characters")


def check_unbuilt(asked: pb.GenerateRequest, path: str = "") -> None:
    """Refuse what the API names and this release does not do; neutral values pass.

    Raises:
        RequestError: INVALID_ARGUMENT with the field's path.
    """
    sampling, output = asked.sampling, asked.output
    wanted = (
        ("sampling.repetition_penalty", sampling.HasField("repetition_penalty")
            and sampling.repetition_penalty != 1.0, "1"),
        ("sampling.presence_penalty", sampling.presence_penalty != 0.0, "0"),
        ("sampling.frequency_penalty", sampling.frequency_penalty != 0.0, "0"),
        ("sampling.logit_bias", bool(sampling.logit_bias), "empty"),
        ("output.logprobs", output.logprobs, "false"),
        ("output.top_logprobs", output.top_logprobs != 0, "0"),
        ("output.prompt_logprobs", output.prompt_logprobs, "false"),
        ("n", asked.HasField("n") and asked.n != 1, "1"),
        ("priority", asked.priority != 0, "0"),
    )  # fmt: skip
    for field, is_wanted, neutral in wanted:
        if is_wanted:
            raise invalid_field(f"{path}{field}", f"is not supported yet; leave it {neutral}")


def sampling_params(
    asked: pb.SamplingParams, defaults: SamplingDefaults, vocab_size: int, path: str = ""
) -> SamplingParams:
    """Sampling in use: what was asked for, then the model's defaults, then the API's.

    A temperature below `MIN_TEMPERATURE` is greedy, a top_k of the vocabulary or more is off.
    """
    temperature = _ranged(asked, "temperature", 0.0, math.inf, f"{path}sampling.")
    top_p = _ranged(asked, "top_p", 0.0, 1.0, f"{path}sampling.")
    min_p = _ranged(asked, "min_p", 0.0, 1.0, f"{path}sampling.")
    if top_p == 0.0:
        raise invalid_field(f"{path}sampling.top_p", "is 0, must be above 0 and at most 1")
    top_k = _first(asked.top_k if asked.HasField("top_k") else None, defaults.top_k, 0)
    temperature = _first(temperature, defaults.temperature, 1.0)
    return SamplingParams(
        temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,
        top_p=_first(top_p, defaults.top_p, 1.0),
        top_k=top_k if top_k < vocab_size else 0,
        min_p=_first(min_p, defaults.min_p, 0.0),
        seed=asked.seed if asked.HasField("seed") else secrets.randbits(64),
    )


def _first(*values: _T | None) -> _T:
    return next(value for value in values if value is not None)


def _ranged(
    asked: pb.SamplingParams, field: str, low: float, high: float, path: str
) -> float | None:
    if not asked.HasField(field):
        return None
    value = float(getattr(asked, field))
    if not low <= value <= high or math.isinf(value):
        limits = f"finite and at least {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"
        raise invalid_field(f"{path}{field}", f"is {value:g}, must be {limits}")
    return value


def check_stops(asked: pb.StopConditions, vocab_size: int, path: str = "") -> None:
    """Refuse stop strings and ids that are too many, too long, empty or no token."""
    path = f"{path}stop_conditions."
    if len(asked.stop) > MAX_STOP_STRINGS:
        raise invalid_field(
            f"{path}stop", f"has {len(asked.stop)} strings, at most {MAX_STOP_STRINGS} are taken"
        )
    for index, text in enumerate(asked.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise invalid_field(
                f"{path}stop[{index}]",
                f"has {len(text)} characters, must have 1 to {MAX_STOP_CHARS}",
            )
    if len(asked.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise invalid_field(
            f"{path}stop_token_ids",
            f"has {len(asked.stop_token_ids)} ids, at most {MAX_STOP_TOKEN_IDS} are taken",
        )
    check_token_ids(asked.stop_token_ids, vocab_size, f"{path}stop_token_ids")


def stop_conditions(
    asked: pb.StopConditions,
    *,
    prompt_tokens: int,
    max_context: int,
    cache_tokens: int,
    eos_token_ids: frozenset[int],
    path: str = "",
) -> StopConditions:
    """Stops in use; an unset max_new_tokens is what the prompt leaves of the context, or of the
    KV cache where that is smaller (the last token needs no place in it).

    Raises:
        RequestError: INVALID_ARGUMENT when the prompt and max_new_tokens exceed the context.
    """
    path = f"{path}stop_conditions."
    room = max_context - prompt_tokens
    if room < 1:
        raise prompt_too_long(prompt_tokens, max_context)
    default = max(1, min(room, cache_tokens + 1 - prompt_tokens))
    max_new_tokens = asked.max_new_tokens if asked.HasField("max_new_tokens") else default
    if max_new_tokens < 1:
        raise invalid_field(f"{path}max_new_tokens", "is 0, must be at least 1")
    if max_new_tokens > room:
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"{prompt_tokens} prompt tokens and {path}max_new_tokens {max_new_tokens} are "
            f"{prompt_tokens + max_new_tokens} tokens, more than the context of {max_context}; "
            f"ask for at most {room}",
            reason="PROMPT_TOO_LONG",
            field=f"{path}max_new_tokens",
        )
    if asked.min_new_tokens > max_new_tokens:
        raise invalid_field(
            f"{path}min_new_tokens",
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


def prompt_too_long(prompt_tokens: int, max_context: int) -> RequestError:
    """INVALID_ARGUMENT for a prompt that leaves no room for a single token."""
    return RequestError(
        Code.INVALID_ARGUMENT,
        f"the prompt's {prompt_tokens} tokens leave no room in the context of {max_context}; "
        f"send at most {max_context - 1}",
        reason="PROMPT_TOO_LONG",
        field="prompt",
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


def queue_seconds(asked: pb.GenerateRequest, path: str = "") -> float:
    """How long the request may wait for admission; infinite when it does not say."""
    if not asked.HasField("max_queue_time"):
        return math.inf
    limit: duration_pb2.Duration = asked.max_queue_time
    seconds = limit.seconds + limit.nanos * 1e-9
    if seconds <= 0.0 or not 0 <= limit.nanos < 10**9:
        raise invalid_field(f"{path}max_queue_time", f"is {seconds:g} s, must be above 0 s")
    return seconds


def chat_messages(request: pb.ChatRequest) -> list[dict[str, str]]:
    """The turns as a chat template takes them.

    Raises:
        RequestError: INVALID_ARGUMENT when there is none, or a role is not known.
    """
    if not request.messages:
        raise invalid_field("messages", "is empty; send at least one message")
    if len(request.messages) > MAX_MESSAGES:
        raise invalid_field(
            "messages", f"has {len(request.messages)} turns, may have at most {MAX_MESSAGES}"
        )
    turns = []
    for index, message in enumerate(request.messages):
        role = _ROLES.get(message.role)
        if role is None:
            raise invalid_field(
                f"messages[{index}].role", f"is {message.role}, must be one of {_role_names()}"
            )
        turn = {"role": role, "content": message.content}
        if message.tool_call_id:
            turn["tool_call_id"] = message.tool_call_id
        turns.append(turn)
    return turns


def _role_names() -> str:
    return ", ".join(pb.Role.Name(number) for number in _ROLES)


def template_kwargs(text: str) -> dict[str, Any]:
    """The template's arguments: a JSON object, or none.

    Raises:
        RequestError: INVALID_ARGUMENT when it is anything else, or too long.
    """
    field = "template_kwargs_json"
    if not text:
        return {}
    if len(text) > MAX_TEMPLATE_KWARGS_CHARS:
        raise invalid_field(
            field, f"has {len(text)} characters, at most {MAX_TEMPLATE_KWARGS_CHARS} are taken"
        )
    try:
        kwargs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid_field(field, "is not JSON; send an object") from error
    if not isinstance(kwargs, dict):
        raise invalid_field(field, "is not a JSON object")
    reserved = sorted(_RESERVED_TEMPLATE_KWARGS & kwargs.keys())
    if reserved:
        raise invalid_field(field, f"may not set {', '.join(reserved)}")
    return kwargs
