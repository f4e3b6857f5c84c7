"""The JSON objects that responses hold, as types: what is sent, and what /openapi.json shows.

Owns names and types alone. Typed dicts, so that building one costs what a dict costs.
"""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class Envelope(TypedDict):
    """What an answer and each chunk of it begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: None


class ErrorDetail(TypedDict):
    """What went wrong; ``param`` is the parameter at fault, ``code`` a word for programs."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(TypedDict):
    """The body of every response that is no success."""

    error: ErrorDetail


class Health(TypedDict):
    """Whether requests are served, and why not."""

    status: Literal["ok", "unavailable"]
    reason: NotRequired[str]


class Version(TypedDict):
    """The server's release."""

    version: str


class Tokenized(TypedDict):
    """A prompt's token ids; ``token_strs`` are their texts, if asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    """The text of token ids."""

    prompt: str


class Model(TypedDict):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    """All models: one."""

    object: Literal["list"]
    data: list[Model]


class PromptTokensDetails(TypedDict):
    """Tokens of the prompt that were found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """Of the tokens of all choices, thoughts and their tags."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Tokens of all prompts and choices of a request; the details come where a model thought."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: NotRequired[CompletionTokensDetails]


class FunctionCall(TypedDict):
    """A call's function and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class FunctionCallDelta(TypedDict):
    """The new part of a call's arguments; the name comes with the first part."""

    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """The new part of a call; id and type come with the first part."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionCallDelta


class TopLogprob(TypedDict):
    """A likely token; ``bytes`` is null for part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the output and the likeliest ones in its place, best first."""

    top_logprobs: list[TopLogprob]


class PromptLogprob(TypedDict):
    """A token in a place of the prompt; ``rank`` is null where it is below the likeliest."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""An entry a token of the prompt, by token id; the first has none."""


class ChatLogprobs(TypedDict):
    """Log-probabilities of a choice's tokens."""

    content: list[TokenLogprob]
    refusal: None


class ChatMessage(TypedDict):
    """The assistant's turn; content is null where the turn is calls alone. ``function_call`` is
    the call where the request had ``functions``, ``reasoning_content`` are the model's thoughts.
    """

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    function_call: NotRequired[FunctionCall]


class ChatChoice(TypedDict):
    """One of the turns."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(Envelope):
    """The answer of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: NotRequired[PromptLogprobs]


class ChatDelta(TypedDict, total=False):
    """The new part of a turn."""

    role: Literal["assistant"]
    reasoning_content: str
    content: str
    tool_calls: list[ToolCallDelta]
    function_call: FunctionCallDelta


class ChatChunkChoice(TypedDict):
    """The new part of one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Envelope):
    """An event of a stream of /v1/chat/completions."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


class CompletionLogprobs(TypedDict):
    """Columns of equal length, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One continuation, or the new part of it in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    prompt_logprobs: NotRequired[PromptLogprobs]


class Completion(Envelope):
    """The answer of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(Envelope):
    """An event of a stream of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
