"""Turns `switchyard.v1`'s sampling and output options into `SamplingParams`, and its conditions to
stop into `StopConditions`.

Owns the ranges of these fields, their defaults (`/v1/completions` sets its own), how many tokens
are drawn at most, and the check that some token can be drawn. Knows nothing of prompts, text or
streams.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TypeVar

from frontend.bounds import (
    MAX_LISTED_TOKEN_IDS,
    MAX_LOGIT_BIAS,
    MAX_LOGIT_BIASES,
    MAX_MESSAGE_BYTES,
    MAX_PROMPT_LOGPROBS_BYTES,
    MAX_SAMPLES,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MAX_TOP_LOGPROBS,
    REPETITION_PENALTY_RANGE,
)
from frontend.errors import invalid_field, too_many
from frontend.model_folder import SamplingDefaults
from frontend.processing.tokenizer import check_token_ids
from frontend.requests.request import SamplingParams, StopConditions
from switchyard.v1 import inference_pb2 as pb

FLOAT32_MAX = 3.4028234663852886e38
# The least and the greatest value of each; top_p may not be 0 either.
RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, FLOAT32_MAX),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": REPETITION_PENALTY_RANGE,
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
# A lower temperature is greedy: logits divided by it would leave the range of fp32.
MIN_TEMPERATURE = 1e-5
# Bytes that a log-probability, one alternative, and a token's id take in a message at most.
_LOGPROB_BYTES, _ALTERNATIVE_BYTES = 16, 9
_TOKEN_BYTES = 4

_T = TypeVar("_T")


def sampling_params(
    request: pb.GenerateRequest,
    defaults: SamplingDefaults,
    *,
    vocab_size: int,
    eos_token_ids: Sequence[int],
    bad_words: Sequence[int] = (),
) -> SamplingParams:
    """The sampling in use: what the request sets, then the model's defaults, then the API's.

    A temperature below `MIN_TEMPERATURE` is greedy, a top_k of the vocabulary or more is off. End
    tokens stay among the allowed ones unless they are ignored.

    Args:
        bad_words: tokens that are a bad word.

    Raises:
        RequestError: INVALID_ARGUMENT with the field's path.
    """
    sampling, output = request.sampling, request.output
    allowed, banned = _token_lists(request, vocab_size, eos_token_ids, bad_words)
    num_top = _num_top_logprobs(output)
    repetition = _ranged(sampling, "repetition_penalty")
    top_p = _ranged(sampling, "top_p")
    if top_p == 0.0:
        raise invalid_field("sampling.top_p", "is 0, must be above 0 and at most 1")
    top_k = _first(sampling.top_k if sampling.HasField("top_k") else None, defaults.top_k, 0)
    given = _ranged(sampling, "temperature")
    temperature = _first(given, defaults.temperature, 1.0)
    return SamplingParams(
        temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,
        top_p=_first(top_p, defaults.top_p, 1.0),
        top_k=top_k if top_k < vocab_size else 0,
        min_p=_first(_ranged(sampling, "min_p"), defaults.min_p, 0.0),
        seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
        repetition_penalty=_first(repetition, defaults.repetition_penalty, 1.0),
        presence_penalty=_ranged(sampling, "presence_penalty") or 0.0,
        frequency_penalty=_ranged(sampling, "frequency_penalty") or 0.0,
        logit_bias=_logit_bias(sampling, vocab_size),
        allowed_token_ids=allowed,
        banned_token_ids=banned,
        num_logprobs=num_top + 1 if output.logprobs or output.prompt_logprobs else 0,
        prompt_logprobs=output.prompt_logprobs,
    )


def _logprob_bytes(output: pb.OutputOptions) -> int:
    return _LOGPROB_BYTES + _ALTERNATIVE_BYTES * output.top_logprobs


def check_prompt_logprobs(output: pb.OutputOptions, prompt_tokens: int) -> None:
    """Refuses log-probabilities of a prompt that do not fit one message."""
    max_tokens = MAX_PROMPT_LOGPROBS_BYTES // _logprob_bytes(output)
    if output.prompt_logprobs and prompt_tokens > max_tokens:
        raise invalid_field(
            "output.prompt_logprobs",
            f"of {prompt_tokens} prompt tokens with {output.top_logprobs} alternatives do not fit "
            f"a message; ask for them of at most {max_tokens} tokens, or for fewer alternatives",
        )


def check_whole_answer(request: pb.GenerateRequest) -> None:
    """Refuses a request whose max_new_tokens, for all samples, do not fit one message."""
    each = _TOKEN_BYTES + (_logprob_bytes(request.output) if request.output.logprobs else 0)
    samples, max_tokens = max(1, request.n), MAX_MESSAGE_BYTES // each
    if samples * request.stop_conditions.max_new_tokens > max_tokens:
        raise invalid_field(
            "stop_conditions.max_new_tokens",
            f"is {request.stop_conditions.max_new_tokens} for {samples} samples, and one message "
            f"holds {max_tokens} tokens of what is asked for; stream them, or ask for less",
        )


def _first(*values: _T | None) -> _T:
    return next(value for value in values if value is not None)


def _ranged(sampling: pb.SamplingParams, name: str) -> float | None:
    if not sampling.HasField(name):
        return None
    value = float(getattr(sampling, name))
    check_range(name, value)
    return value


def check_range(name: str, value: float) -> None:
    """Refuses a value outside `RANGES`; one that a message cannot hold is checked before it does.

    Raises:
        RequestError: INVALID_ARGUMENT with the field's path.
    """
    low, high = RANGES[name]
    if not low <= value <= high:
        raise invalid_field(f"sampling.{name}", f"is {value:g}, must be in [{low:g}, {high:g}]")


def check_bias(token_id: int, bias: float) -> None:
    """Refuses a bias of one token that is too large; as `check_range`."""
    if not abs(bias) <= MAX_LOGIT_BIAS:
        raise invalid_field(
            f"sampling.logit_bias[{token_id}]",
            f"is {bias:g}, must be in [{-MAX_LOGIT_BIAS:g}, {MAX_LOGIT_BIAS:g}]",
        )


def _logit_bias(sampling: pb.SamplingParams, vocab_size: int) -> tuple[tuple[int, float], ...]:
    field = "sampling.logit_bias"
    if len(sampling.logit_bias) > MAX_LOGIT_BIASES:
        raise too_many(field, len(sampling.logit_bias), MAX_LOGIT_BIASES, "tokens")
    biases = sorted(sampling.logit_bias.items())
    for token_id, bias in biases:
        if token_id >= vocab_size:
            raise invalid_field(
                f"{field}[{token_id}]", f"is no token, ids are below the vocabulary's {vocab_size}"
            )
        check_bias(token_id, bias)
    return tuple(biases)


def _token_lists(
    request: pb.GenerateRequest,
    vocab_size: int,
    eos_token_ids: Sequence[int],
    bad_words: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Allowed and banned tokens, ascending; they always leave a token that can be drawn."""
    sampling, stops = request.sampling, request.stop_conditions
    for name in ("allowed_token_ids", "bad_token_ids"):
        ids, field = getattr(sampling, name), f"sampling.{name}"
        if len(ids) > MAX_LISTED_TOKEN_IDS:
            raise too_many(field, len(ids), MAX_LISTED_TOKEN_IDS, "ids")
        check_token_ids(ids, vocab_size, field)
    eos = set() if stops.ignore_eos else set(eos_token_ids)
    banned = {*sampling.bad_token_ids, *bad_words}
    allowed = set(sampling.allowed_token_ids)
    if allowed:
        allowed |= eos
    suppressed = eos | set(stops.stop_token_ids) if stops.min_new_tokens else set()
    excluded = banned | suppressed
    num_left = len(allowed - excluded) if allowed else vocab_size - len(excluded)
    if num_left <= 0:
        field = "allowed_token_ids" if allowed else "bad_token_ids"
        before = " before min_new_tokens" if suppressed else ""
        raise invalid_field(
            f"sampling.{field}",
            f"leaves no token to draw{before}; ban fewer or allow more",
            mentions={"min_new_tokens": "stop_conditions.min_new_tokens"},
        )
    return tuple(sorted(allowed)), tuple(sorted(banned))


def _num_top_logprobs(output: pb.OutputOptions) -> int:
    count = int(output.top_logprobs)
    field = "output.top_logprobs"
    if count > MAX_TOP_LOGPROBS:
        raise invalid_field(field, f"is {count}, must be 0 to {MAX_TOP_LOGPROBS}")
    if count and not (output.logprobs or output.prompt_logprobs):
        raise invalid_field(field, f"is {count}, which needs logprobs or prompt_logprobs")
    return count


def check_stops(stops: pb.StopConditions, vocab_size: int) -> None:
    """Refuses stop strings and ids that are too many, too long, empty or no token."""
    if len(stops.stop) > MAX_STOP_STRINGS:
        raise too_many("stop_conditions.stop", len(stops.stop), MAX_STOP_STRINGS, "strings")
    for index, text in enumerate(stops.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise invalid_field(
                f"stop_conditions.stop[{index}]",
                f"has {len(text)} characters, must have 1 to {MAX_STOP_CHARS}",
            )
    field = "stop_conditions.stop_token_ids"
    if len(stops.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise too_many(field, len(stops.stop_token_ids), MAX_STOP_TOKEN_IDS, "ids")
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
        RequestError: INVALID_ARGUMENT when the prompt and max_new_tokens exceed the context and
            may not.
    """
    room = max_context - prompt_tokens
    assert room > 0, "refused by check_prompt"
    default = max(1, min(room, cache_tokens + 1 - prompt_tokens))
    max_new_tokens = stops.max_new_tokens if stops.HasField("max_new_tokens") else default
    if max_new_tokens < 1:
        raise invalid_field("stop_conditions.max_new_tokens", "is 0, must be at least 1")
    if stops.up_to_context:
        max_new_tokens = min(max_new_tokens, default)
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
            mentions={"max_new_tokens": "stop_conditions.max_new_tokens"},
        )
    return StopConditions(
        max_new_tokens=max_new_tokens,
        min_new_tokens=stops.min_new_tokens,
        stop=tuple(stops.stop),
        stop_token_ids=frozenset(stops.stop_token_ids),
        eos_token_ids=frozenset() if stops.ignore_eos else eos_token_ids,
        include_stop=stops.include_stop,
    )


def num_samples(request: pb.GenerateRequest) -> int:
    """The number of samples, 1 where the request does not say."""
    if not request.HasField("n"):
        return 1
    if not 1 <= request.n <= MAX_SAMPLES:
        raise invalid_field("n", f"is {request.n}, must be 1 to {MAX_SAMPLES}")
    return int(request.n)
