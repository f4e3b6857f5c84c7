"""Turns a message into the engine's requests: prompt tokens, sampling, stops, decoder, constraint.

Owns the use of the tokenizer on the way in, and how long a prompt may be. Knows nothing of queues
or of which requests are live.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import jinja2
from google.protobuf import duration_pb2

from frontend.backend import Backend, TokenizerLike
from frontend.bounds import MAX_CHARS_PER_TOKEN, MAX_KEPT_TOKENS, MAX_LIBRARY_ERROR_CHARS
from frontend.errors import Code, RequestError, invalid_field, too_many
from frontend.processing import sampling_params
from frontend.processing.bad_words import Spelling, WordFilter, spellings
from frontend.processing.chat.control_tokens import ControlTokenError
from frontend.processing.chat.conversation import Conversation, conversation
from frontend.processing.constraints.structured_output import Compiler
from frontend.processing.continuation import check_generated, resume
from frontend.processing.thoughts.plan import DecoderOf, ThoughtPlan, thought_plan
from frontend.processing.threads import THREAD_LENGTH, in_thread
from frontend.processing.tokenizer import check_token_ids
from frontend.requests.output import Output
from frontend.requests.request import Matcher, Request, SamplingParams, TextDecoder
from switchyard.v1 import inference_pb2 as pb

# Errors that a template raises for messages it was not written for.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)

Message = pb.GenerateRequest | pb.ChatRequest

_P = ParamSpec("_P")
_R = TypeVar("_R")


def generation_of(message: Message) -> pb.GenerateRequest:
    """The message itself, or the GenerateRequest that a chat holds."""
    return message.request if isinstance(message, pb.ChatRequest) else message


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
    bad_words = []
    if request.sampling.bad_words:
        encode_word = tokenizer_of(backend).encode
        bad_words = await spellings(encode_word, request.sampling.bad_words, info.vocab_size)
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
    decoder_of = _decoder_maker(backend, request)
    if in_one_message:
        sampling_params.check_whole_answer(request)
    ids = await encode(backend, message)
    sampling_params.check_prompt_logprobs(request.output, len(ids))
    stops = sampling_params.stop_conditions(
        request.stop_conditions,
        prompt_tokens=len(ids),
        max_context=info.max_model_len,
        cache_tokens=info.cache_groups.longest(info.num_blocks, info.max_model_len),
        eos_token_ids=frozenset(backend.end_token_ids),
    )
    plan = None
    if backend.thought_tags is not None and isinstance(message, pb.ChatRequest):
        plan = thought_plan(backend.thought_tags, message, ids, info.vocab_size)
    long_words = [each for each in bad_words if len(each) > 1]
    matchers: Sequence[Matcher | None] = [None] * num_samples
    if request.HasField("constraint"):
        matchers = await compiler.matchers(request.constraint, num_samples, key)
    elif long_words:
        matchers = _word_filters(request, long_words, num_samples, info.vocab_size)
    if plan is not None:
        matchers = plan.matchers(matchers)
    outputs = [Output() for _ in range(num_samples)]
    samples = [
        Request(
            id=sample_id(request_id, index),
            prompt_ids=ids,
            sampling=_sample_params(params, request.output, index),
            stops=stops,
            decoder=_decoder(backend, decoder_of, plan, request.output, output),
            output=output,
            matcher=matcher,
            priority=request.priority,
            queue_deadline=arrived + queue_seconds,
            arrived=arrived,
        )
        for index, (output, matcher) in enumerate(zip(outputs, matchers, strict=True))
    ]
    if request.generated:  # which is rare, and may be much work: always in a thread
        await in_thread(resume, samples, request.generated)
    return samples


def _word_filters(
    request: pb.GenerateRequest, words: Sequence[Spelling], num_samples: int, vocab_size: int
) -> list[WordFilter]:
    """What keeps words of several tokens out of each sample."""
    if request.sampling.allowed_token_ids:  # which could be all that is banned
        raise invalid_field(
            "sampling.bad_words",
            "of several tokens cannot be set beside allowed_token_ids; leave one of them out",
            mentions={"allowed_token_ids": "sampling.allowed_token_ids"},
        )
    return [WordFilter(words, vocab_size) for _ in range(num_samples)]


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
    ends = not request.constraint.trigger  # by an end token
    for field, is_set in (
        ("stop_conditions.ignore_eos", ends and stops.ignore_eos),
        ("stop_conditions.min_new_tokens", ends and stops.min_new_tokens),
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


def _decoder_maker(backend: Backend, request: pb.GenerateRequest) -> DecoderOf | None:
    """Makes decoders of answers; None when no text is wanted, or there is no tokenizer."""
    stop = tuple(request.stop_conditions.stop)
    needs = "stop_conditions.stop" if stop else "output.echo" if request.output.echo else ""
    if request.output.skip_detokenize and needs:
        raise invalid_field("output.skip_detokenize", f"cannot be set beside {needs}")
    if request.output.skip_detokenize or (backend.tokenizer is None and not needs):
        return None
    make, stops, keep = tokenizer_of(backend).decoder, request.stop_conditions, request.output
    if len(keep.kept_tokens) > MAX_KEPT_TOKENS:
        count = len(keep.kept_tokens)
        raise too_many("output.kept_tokens", count, MAX_KEPT_TOKENS, "tokens")
    return lambda num_before: make(
        stop,
        stops.include_stop,
        keep.keep_special_tokens,
        max(0, stops.min_new_tokens - num_before),
        frozenset(keep.kept_tokens),
    )


def _decoder(
    backend: Backend,
    decoder_of: DecoderOf | None,
    plan: ThoughtPlan | None,
    options: pb.OutputOptions,
    output: Output,
) -> TextDecoder | None:
    """The decoder of one sample."""
    if decoder_of is None or plan is None:
        return None if decoder_of is None else decoder_of(0)
    make = tokenizer_of(backend).decoder
    return plan.decoder(decoder_of, lambda: make((), False, options.keep_special_tokens), output)


async def echo_text(backend: Backend, request: pb.GenerateRequest, ids: list[int]) -> str:
    """The prompt as text: what was sent, or what its tokens say."""
    if request.prompt.WhichOneof("input") == "text":
        return request.prompt.text
    decode = tokenizer_of(backend).decode
    return await offloaded(len(ids), decode, ids, request.output.keep_special_tokens)


async def encode(backend: Backend, message: Message) -> list[int]:
    """Token ids of a message's prompt or conversation.

    Raises:
        RequestError: see `prompt_ids` and `chat_ids`.
    """
    if isinstance(message, pb.ChatRequest):
        return await chat_ids(backend, message)
    return await prompt_ids(backend, message.prompt)


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
            ids = await offloaded(len(prompt.text), tokenizer.encode, prompt.text)
            return _checked_text(backend, ids, "prompt.text")
        case "tokens":
            return _checked_ids(backend, prompt.tokens.ids, "prompt.tokens.ids")
        case _:
            raise invalid_field("prompt", "is unset; send one of text and tokens")


async def chat_ids(backend: Backend, chat: pb.ChatRequest) -> list[int]:
    """Token ids of a conversation, rendered by the model's chat template.

    Raises:
        RequestError: no template, a prompt beside the messages, or messages it will not take.
    """
    if chat.request.prompt.WhichOneof("input") is not None:
        raise invalid_field("prompt", "is set; a chat's prompt is its messages")
    given = conversation(chat)
    tokenizer = backend.tokenizer
    if tokenizer is None or not tokenizer.has_chat_template:
        raise RequestError(
            Code.FAILED_PRECONDITION,
            "this model has no chat template; use Generate",
            reason="NO_CHAT_TEMPLATE",
            mentions={"Generate": "Generate"},
        )
    length = given.num_chars + len(chat.template_kwargs_json) + len(chat.tools_json)
    _check_length(backend, length, "messages")
    try:
        ids = await offloaded(length, tokenizer.render_chat, given)
    except _TEMPLATE_ERRORS as error:
        ids = await _chat_of_objects(tokenizer, length, given, error)
    return _checked_text(backend, ids, "messages")


async def _chat_of_objects(
    tokenizer: TokenizerLike, length: int, given: Conversation, error: Exception
) -> list[int]:
    """The conversation for a template that refused it: many take no text as a call's arguments,
    and some not every effort.

    Raises:
        RequestError: the template refuses it all the same.
    """
    other = given.with_objects().without_optional_kwargs()
    try:
        if other == given:
            raise error
        return await offloaded(length, tokenizer.render_chat, other)
    except ControlTokenError as refusal:
        raise invalid_field(
            "messages",
            "spell control tokens, and this model's chat template does not let them be told from "
            "its own; leave them out, or set parse_special_tokens",
        ) from refusal
    except _TEMPLATE_ERRORS as refusal:
        complaint = str(refusal)[:MAX_LIBRARY_ERROR_CHARS]
        raise invalid_field("messages", f"do not fit the chat template: {complaint}") from refusal


def _check_length(backend: Backend, num_chars: int, field: str) -> None:
    """Refuses a text that is far too long for the context before it costs anything."""
    max_chars = MAX_CHARS_PER_TOKEN * backend.info.max_model_len
    if num_chars > max_chars:
        raise too_many(field, num_chars, max_chars, "characters")


def _checked_text(backend: Backend, ids: list[int], field: str) -> list[int]:
    """`_checked_ids` of a text, whose tokens its sender does not know by number."""
    vocab_size, largest = backend.info.vocab_size, max(ids, default=0)
    if largest >= vocab_size:
        raise invalid_field(
            field,
            f"has text of token {largest}, and the model's vocabulary has {vocab_size}; leave the "
            "text out: the tokenizer knows more tokens than the model",
        )
    return _checked_ids(backend, ids, field)


def _checked_ids(backend: Backend, ids: Sequence[int], field: str) -> list[int]:
    if not ids:
        raise invalid_field(field, "has no tokens; send at least one")
    _check_prompt(len(ids), backend.info.max_model_len)
    check_token_ids(ids, backend.info.vocab_size, field)
    return list(ids)


def _check_prompt(num_prompt: int, max_model_len: int) -> None:
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


def tokenizer_of(backend: Backend) -> TokenizerLike:
    """The tokenizer, or FAILED_PRECONDITION."""
    if backend.tokenizer is None:
        raise RequestError(
            Code.FAILED_PRECONDITION,
            "this model has no tokenizer; send and read token ids",
            reason="NO_TOKENIZER",
        )
    return backend.tokenizer


async def offloaded(
    length: int, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
) -> _R:
    """Calls ``function``, in a thread when ``length`` says it takes long.

    The tokenizers library lets other threads run meanwhile; a chat template is Python, which gives
    way every millisecond.
    """
    if length <= THREAD_LENGTH:
        return function(*args, **kwargs)
    return await in_thread(function, *args, **kwargs)
