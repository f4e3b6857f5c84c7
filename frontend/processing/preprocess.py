"""From a message to `Request`s: prompt tokens, sampling, stops, decoder and constraint.

Owns the use of the tokenizer on the way in. Knows nothing of queues or of which requests live.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import ParamSpec, TypeVar

import jinja2

from frontend.backend import Backend, TokenizerLike
from frontend.bounds import MAX_CHARS_PER_TOKEN
from frontend.errors import Code, RequestError, invalid_field
from frontend.processing import chat_template, sampling_params, validation
from frontend.processing.structured_output import Compiler
from frontend.requests.output import Output
from frontend.requests.request import Matcher, Request, SamplingParams, TextDecoder
from switchyard.v1 import inference_pb2 as pb

# Longer inputs (characters to encode, tokens to decode) are worked on in a thread: 2 µs a token.
THREAD_LENGTH = 2000
# What a chat's turn costs the template beside its content, in characters.
TURN_CHARS = 16
# A template's own complaint may hold parts of the messages.
MAX_COMPLAINT_CHARS = 200

# What a template can raise over messages it was not written for.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


Encode = Callable[[Backend], Awaitable[list[int]]]


async def prompt_ids(backend: Backend, prompt: pb.Prompt) -> list[int]:
    """Token ids of a prompt.

    Raises:
        RequestError: no prompt or an empty one, an id outside the vocabulary, a text without a
            tokenizer.
    """
    match prompt.WhichOneof("input"):
        case "text":
            if not prompt.text:
                raise invalid_field("prompt.text", "is empty; send at least one character")
            tokenizer = tokenizer_of(backend)
            _check_length(backend, len(prompt.text), "prompt.text")
            ids = await threaded(len(prompt.text), tokenizer.encode, prompt.text)
            return _checked_ids(backend, ids, "prompt.text")
        case "tokens":
            field = "prompt.tokens.ids"
            count = len(prompt.tokens.ids)
            if count >= backend.info.max_model_len:
                raise validation.prompt_too_long(count, backend.info.max_model_len)
            return _checked_ids(backend, list(prompt.tokens.ids), field)
        case _:
            raise invalid_field("prompt", "is unset; send one of text and tokens")


async def chat_ids(backend: Backend, asked: pb.ChatRequest) -> list[int]:
    """Token ids of a conversation, rendered by the model's chat template.

    Raises:
        RequestError: no template, a prompt beside the messages, or messages it will not take.
    """
    if asked.request.prompt.WhichOneof("input") is not None:
        raise invalid_field("prompt", "is set; a chat's prompt is its messages")
    messages = chat_template.messages(asked)
    kwargs = chat_template.template_kwargs(asked.template_kwargs_json)
    tools = chat_template.tools(asked.tools_json)
    tokenizer = backend.tokenizer
    if tokenizer is None or not tokenizer.has_chat_template:
        raise RequestError(
            Code.FAILED_PRECONDITION,
            "this model has no chat template; use Generate",
            reason="NO_CHAT_TEMPLATE",
        )
    length = sum(TURN_CHARS + len(message["content"]) for message in messages)
    length += len(asked.template_kwargs_json) + len(asked.tools_json)
    _check_length(backend, length, "messages")
    try:
        ids = await threaded(length, tokenizer.render_chat, messages, kwargs, tools)
    except _TEMPLATE_ERRORS as error:
        complaint = str(error)[:MAX_COMPLAINT_CHARS]
        raise invalid_field("messages", f"do not fit the chat template: {complaint}") from error
    return _checked_ids(backend, ids, "messages")


def _check_length(backend: Backend, num_chars: int, field: str) -> None:
    """Refuse a text that is far too long for the context before it costs anything."""
    most = MAX_CHARS_PER_TOKEN * backend.info.max_model_len
    validation.check_count(num_chars, most, field, "characters")


def _checked_ids(backend: Backend, ids: list[int], field: str) -> list[int]:
    if not ids:
        raise invalid_field(field, "has no tokens; send at least one")
    if len(ids) >= backend.info.max_model_len:
        raise validation.prompt_too_long(len(ids), backend.info.max_model_len)
    validation.check_token_ids(ids, backend.info.vocab_size, field)
    return ids


async def make_requests(
    backend: Backend,
    compiler: Compiler,
    asked: pb.GenerateRequest,
    request_id: str,
    encode: Encode,
) -> list[Request]:
    """The requests that the engine gets, one a sample. What costs nothing is checked before
    ``encode`` is called, and a constraint is compiled after it.

    Raises:
        RequestError: INVALID_ARGUMENT for a field out of range, or what ``encode`` raises.
    """
    info = backend.info
    arrived = time.monotonic()
    num_samples = validation.num_samples(asked)
    validation.check_stops(asked.stop_conditions, info.vocab_size)
    params = sampling_params.sampling_params(
        asked,
        backend.defaults,
        vocab_size=info.vocab_size,
        eos_token_ids=info.eos_token_ids,
    )
    queue_seconds = validation.queue_seconds(asked)
    if asked.HasField("constraint"):
        _check_beside_constraint(asked)
    decoders = [_decoder(backend, asked) for _ in range(num_samples)]
    ids = await encode(backend)
    sampling_params.check_prompt_logprobs(asked.output, len(ids))
    stops = validation.stop_conditions(
        asked.stop_conditions,
        prompt_tokens=len(ids),
        max_context=info.max_model_len,
        cache_tokens=info.num_blocks * info.block_size,
        eos_token_ids=frozenset(info.eos_token_ids),
    )
    matchers: Sequence[Matcher | None] = [None] * num_samples
    if asked.HasField("constraint"):
        matchers = await compiler.matchers(asked.constraint, num_samples)
    return [
        Request(
            id=sample_id(request_id, index),
            prompt_ids=ids,
            sampling=_sample_params(params, asked.output, index),
            stops=stops,
            decoder=decoder,
            output=Output(),
            matcher=matcher,
            priority=asked.priority,
            queue_deadline=arrived + queue_seconds,
            arrived=arrived,
        )
        for index, (decoder, matcher) in enumerate(zip(decoders, matchers, strict=True))
    ]


def sample_id(request_id: str, index: int) -> str:
    """What the engine calls a sample; beyond the first no caller can choose such an id."""
    return f"{request_id}·{index}" if index else request_id


def _sample_params(params: SamplingParams, output: pb.OutputOptions, index: int) -> SamplingParams:
    """Sampling of one sample: the first alone reports the prompt's log-probabilities."""
    if index == 0:
        return params
    num_logprobs = params.num_logprobs if output.logprobs else 0
    return dataclasses.replace(
        params, sample_index=index, prompt_logprobs=False, num_logprobs=num_logprobs
    )


def _check_beside_constraint(asked: pb.GenerateRequest) -> None:
    """Refuse what could leave no token where a language must go on, or must end."""
    stops, params = asked.stop_conditions, asked.sampling
    for field, is_set in (
        ("stop_conditions.ignore_eos", stops.ignore_eos),
        ("stop_conditions.min_new_tokens", stops.min_new_tokens),
        ("sampling.allowed_token_ids", params.allowed_token_ids),
        ("sampling.bad_token_ids", params.bad_token_ids),
    ):
        if is_set:
            raise invalid_field(field, "cannot be set beside constraint; leave one of them out")


def _decoder(backend: Backend, asked: pb.GenerateRequest) -> TextDecoder | None:
    """The request's decoder; None when no text is wanted, or there is nothing to make it with."""
    stop = tuple(asked.stop_conditions.stop)
    needs = "stop_conditions.stop" if stop else "output.echo" if asked.output.echo else ""
    if asked.output.skip_detokenize and needs:
        raise invalid_field("output.skip_detokenize", f"cannot be set beside {needs}")
    if asked.output.skip_detokenize or (backend.tokenizer is None and not needs):
        return None
    return tokenizer_of(backend).decoder(
        stop,
        asked.stop_conditions.include_stop,
        asked.output.keep_special_tokens,
        asked.stop_conditions.min_new_tokens,
    )


def echo_text(backend: Backend, asked: pb.GenerateRequest, ids: list[int]) -> str:
    """The prompt as text: what was sent, or what its tokens say."""
    if asked.prompt.WhichOneof("input") == "text":
        return asked.prompt.text
    return tokenizer_of(backend).decode(ids, asked.output.keep_special_tokens)


def tokenizer_of(backend: Backend) -> TokenizerLike:
    """The tokenizer, or FAILED_PRECONDITION."""
    if backend.tokenizer is None:
        raise RequestError(
            Code.FAILED_PRECONDITION,
            "this model has no tokenizer; send and read token ids",
            reason="NO_TOKENIZER",
        )
    return backend.tokenizer


async def threaded(
    length: int, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
) -> _R:
    """Call ``function``, in a thread when ``length`` says it takes long."""
    if length <= THREAD_LENGTH:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
