"""Turns a message into the engine's requests: prompt tokens, sampling, stops, decoder, constraint.

Knows nothing of queues or of which requests are live.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

from google.protobuf import duration_pb2

from frontend.backend import Backend
from frontend.errors import invalid_field
from frontend.processing import sampling_params
from frontend.processing.bad_words import WordFilter, spellings
from frontend.processing.constraints.structured_output import Compiler
from frontend.processing.continuation import check_generated, resume
from frontend.processing.prompts import Message, encode, generation_of, tokenizer_of
from frontend.processing.threads import in_thread, offloaded
from frontend.requests.output import Output
from frontend.requests.request import Matcher, Request, SamplingParams, TextDecoder
from switchyard.v1 import inference_pb2 as pb


async def make_requests(
    backend: Backend,
    compiler: Compiler,
    message: Message,
    request_id: str,
    *,
    key: str = "",
    in_one_message: bool = False,
) -> list[Request]:
    """The engine's requests, one per sample. What costs nothing is checked first, then the prompt
    is encoded, then a constraint is compiled.

    Args:
        key: the caller's.
        in_one_message: the whole answer travels in one message, which it must fit.

    Raises:
        RequestError: INVALID_ARGUMENT for a field out of range, or what `encode` raises.
    """
    info, request = backend.info, generation_of(message)
    arrived = time.monotonic()
    num_samples = sampling_params.num_samples(request)
    if request.generated:
        check_generated(request, num_samples, info.vocab_size)
    sampling_params.check_stops(request.stop_conditions, info.vocab_size)
    bad_words = await spellings(backend, words) if (words := request.sampling.bad_words) else []
    params = sampling_params.sampling_params(
        request,
        backend.defaults,
        vocab_size=info.vocab_size,
        eos_token_ids=backend.end_token_ids,
        bad_words=[each[0] for each in bad_words if len(each) == 1],
    )
    queue_seconds = _queue_seconds(request)
    if request.HasField("constraint"):
        _check_beside_constraint(request)
    decoders = [_decoder(backend, request) for _ in range(num_samples)]
    if in_one_message:
        sampling_params.check_whole_answer(request)
    ids = await encode(backend, message)
    sampling_params.check_prompt_logprobs(request.output, len(ids))
    stops = sampling_params.stop_conditions(
        request.stop_conditions,
        prompt_tokens=len(ids),
        max_context=info.max_model_len,
        cache_tokens=info.num_blocks * info.block_size,
        eos_token_ids=frozenset(backend.end_token_ids),
    )
    matchers: Sequence[Matcher | None] = [None] * num_samples
    long_words = [each for each in bad_words if len(each) > 1]
    if request.HasField("constraint"):
        matchers = await compiler.matchers(request.constraint, num_samples, key)
    elif long_words:
        if request.sampling.allowed_token_ids:  # which could be all that is banned
            raise invalid_field(
                "sampling.bad_words",
                "of several tokens cannot be set beside allowed_token_ids; leave one of them out",
                mentions={"allowed_token_ids": "sampling.allowed_token_ids"},
            )
        matchers = [WordFilter(long_words, info.vocab_size) for _ in range(num_samples)]
    samples = [
        Request(
            id=sample_id(request_id, index),
            prompt_ids=ids,
            sampling=_sample_params(params, request.output, index),
            stops=stops,
            decoder=decoder,
            output=Output(),
            matcher=matcher,
            priority=request.priority,
            queue_deadline=arrived + queue_seconds,
            arrived=arrived,
        )
        for index, (decoder, matcher) in enumerate(zip(decoders, matchers, strict=True))
    ]
    if request.generated:  # which is rare, and may be much work: always in a thread
        await in_thread(resume, samples, request.generated)
    return samples


def _queue_seconds(request: pb.GenerateRequest) -> float:
    """Seconds the request may wait for admission, infinite where it does not say."""
    if not request.HasField("max_queue_time"):
        return math.inf
    limit: duration_pb2.Duration = request.max_queue_time
    seconds = limit.seconds + limit.nanos * 1e-9
    if abs(limit.nanos) >= 10**9 or limit.seconds * limit.nanos < 0:
        raise invalid_field(
            "max_queue_time",
            f"is no valid duration: {limit.seconds} s and {limit.nanos} ns; nanos are below 10^9 "
            "and have the sign of seconds",
        )
    if seconds <= 0.0:
        raise invalid_field("max_queue_time", f"is {seconds:g} s, must be above 0 s")
    return seconds


def sample_id(request_id: str, index: int) -> str:
    """The engine's id of a sample. Ids of later samples hold a "·", which callers' ids may not."""
    return f"{request_id}·{index}" if index else request_id


def _sample_params(params: SamplingParams, output: pb.OutputOptions, index: int) -> SamplingParams:
    """The sampling of one sample: only the first reports the prompt's log-probabilities."""
    if index == 0:
        return params
    num_logprobs = params.num_logprobs if output.logprobs else 0
    return dataclasses.replace(
        params, sample_index=index, prompt_logprobs=False, num_logprobs=num_logprobs
    )


def _check_beside_constraint(request: pb.GenerateRequest) -> None:
    """Refuses options that could forbid every token that the grammar allows."""
    stops, params = request.stop_conditions, request.sampling
    for field, is_set in (
        ("stop_conditions.ignore_eos", stops.ignore_eos),
        ("stop_conditions.min_new_tokens", stops.min_new_tokens),
        ("sampling.allowed_token_ids", params.allowed_token_ids),
        ("sampling.bad_token_ids", params.bad_token_ids),
        ("sampling.bad_words", params.bad_words),
    ):
        if is_set:
            raise invalid_field(
                field,
                "cannot be set beside constraint; leave one of them out",
                mentions={"constraint": "constraint"},
            )


def _decoder(backend: Backend, request: pb.GenerateRequest) -> TextDecoder | None:
    """The request's decoder; None when no text is wanted, or there is no tokenizer."""
    stop = tuple(request.stop_conditions.stop)
    needs = "stop_conditions.stop" if stop else "output.echo" if request.output.echo else ""
    if request.output.skip_detokenize and needs:
        raise invalid_field("output.skip_detokenize", f"cannot be set beside {needs}")
    if request.output.skip_detokenize or (backend.tokenizer is None and not needs):
        return None
    return tokenizer_of(backend).decoder(
        stop,
        request.stop_conditions.include_stop,
        request.output.keep_special_tokens,
        request.stop_conditions.min_new_tokens,
    )


async def echo_text(backend: Backend, request: pb.GenerateRequest, ids: list[int]) -> str:
    """The prompt as text: what was sent, or what its tokens say."""
    if request.prompt.WhichOneof("input") == "text":
        return request.prompt.text
    decode = tokenizer_of(backend).decode
    return await offloaded(len(ids), decode, ids, request.output.keep_special_tokens)
