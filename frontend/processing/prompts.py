"""From a message to the token ids of its prompt: a text, ids, or a conversation.

Owns the use of the tokenizer on the way in, and how long a prompt may be.
"""

from __future__ import annotations

from collections.abc import Sequence

import jinja2

from frontend.backend import Backend, TokenizerLike
from frontend.bounds import MAX_CHARS_PER_TOKEN, MAX_LIBRARY_ERROR_CHARS
from frontend.errors import Code, RequestError, invalid_field, too_many
from frontend.processing.chat.control_tokens import ControlTokenError
from frontend.processing.chat.conversation import Conversation, conversation
from frontend.processing.threads import offloaded
from frontend.processing.tokenizer import check_token_ids
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


def generation_of(message: Message) -> pb.GenerateRequest:
    """The message itself, or the GenerateRequest that a chat holds."""
    return message.request if isinstance(message, pb.ChatRequest) else message


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
    """The conversation for a template that refused it: many take no text as a call's arguments.

    Raises:
        RequestError: the template refuses it all the same.
    """
    objects = given.with_objects()
    try:
        if objects == given:
            raise error
        return await offloaded(length, tokenizer.render_chat, objects)
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
