"""The JSON objects that responses and events hold, as types: what is sent, and what /openapi.json
shows.
"""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypeAliasType, TypedDict

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class MessagesErrorDetail(TypedDict):
    """What went wrong; the message begins with the parameter at fault, if there is one."""

    type: str
    message: str


class MessagesError(TypedDict):
    """The body of every response that is no success, and the last event of a stream that failed."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str


class OutputDetails(TypedDict):
    """Tokens of the output that were thoughts."""

    thinking_tokens: int


class MessagesUsage(TypedDict):
    """Tokens of prompt and output; those found in the prefix cache count apart."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: NotRequired[OutputDetails]


class ThinkingBlock(TypedDict):
    """What the model thought."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class TextBlock(TypedDict):
    """What it says."""

    type: Literal["text"]
    text: str


class ToolUseBlock(TypedDict):
    """A call; in the event that begins it, the input is empty."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, object]


ContentBlock = ThinkingBlock | TextBlock | ToolUseBlock


class AssistantMessage(TypedDict):
    """The answer of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessagesUsage


class ThinkingDelta(TypedDict):
    """The new part of a thinking block."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(TypedDict):
    """The end of a thinking block."""

    type: Literal["signature_delta"]
    signature: str


class TextDelta(TypedDict):
    """The new part of a text block."""

    type: Literal["text_delta"]
    text: str


class InputJsonDelta(TypedDict):
    """The new part of a call's input, as JSON text."""

    type: Literal["input_json_delta"]
    partial_json: str


BlockDelta = ThinkingDelta | SignatureDelta | TextDelta | InputJsonDelta


class MessageStart(TypedDict):
    """The first event: a message without content."""

    type: Literal["message_start"]
    message: AssistantMessage


class ContentBlockStart(TypedDict):
    """A block begins."""

    type: Literal["content_block_start"]
    index: int
    content_block: ContentBlock


class ContentBlockDelta(TypedDict):
    """A block goes on."""

    type: Literal["content_block_delta"]
    index: int
    delta: BlockDelta


class ContentBlockStop(TypedDict):
    """A block is whole."""

    type: Literal["content_block_stop"]
    index: int


class Stopped(TypedDict):
    """How the message ends."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(TypedDict):
    """The end of the message, with its usage."""

    type: Literal["message_delta"]
    delta: Stopped
    usage: MessagesUsage


class MessageStop(TypedDict):
    """The last event."""

    type: Literal["message_stop"]


MessageEvent = TypeAliasType(
    "MessageEvent",
    MessageStart
    | ContentBlockStart
    | ContentBlockDelta
    | ContentBlockStop
    | MessageDelta
    | MessageStop,
)
"""An event of a stream of /v1/messages."""


class TokenCount(TypedDict):
    """The length of a prompt."""

    input_tokens: int


class ModelInfo(TypedDict):
    """The served model."""

    id: str
    type: Literal["model"]
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int
    max_tokens: int


class ModelPage(TypedDict):
    """All models: one."""

    data: list[ModelInfo]
    first_id: str
    last_id: str
    has_more: bool
