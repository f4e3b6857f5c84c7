"""The bodies of /v1/messages and /v1/messages/count_tokens as pydantic models: names, types and
ranges of all parameters.

Names that stand neither here nor in `parameters.py` are ignored. Knows nothing of `switchyard.v1`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from frontend.api.http.values import MaxTokens, Number, RequestModel, Strings, TopK, content_parts

_KINDS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")


def _known_kind(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value not in _KINDS):
        raise PydanticCustomError(
            "block",
            "is {kind}; text, thinking, tool_use and tool_result are read here",
            {"kind": (value or "nothing")[:32]},
        )
    return value


BlockKind = Annotated[
    Literal["text", "thinking", "redacted_thinking", "tool_use", "tool_result"],
    BeforeValidator(_known_kind),
]


class Block(RequestModel):
    """A part of a message; images and documents are refused."""

    type: BlockKind = Field(default=None, validate_default=True)
    text: str | None = None
    thinking: str | None = Field(
        default=None, description="What the assistant thought; its signature is not checked."
    )
    id: str | None = Field(default=None, description="Of a tool_use.")
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = Field(default=None, description="Of a tool_result.")
    content: Blocks = Field(default=[], description="Of a tool_result: text.")
    is_error: bool | None = None


Blocks = Annotated[
    list[Block],
    BeforeValidator(content_parts, json_schema_input_type=str | list[Block] | None),
]


class MessageParam(RequestModel):
    """A turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Blocks


class ToolParam(RequestModel):
    """A function that the model may call; tools of Anthropic's own are refused."""

    type: str | None = Field(default=None, description="Unset, or custom.")
    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = Field(
        default=None, description="JSON schema of the arguments."
    )
    strict: bool | None = Field(
        default=None, description="Objects that do not say otherwise have no other properties."
    )


class ToolChoiceParam(RequestModel):
    """Whether the model must call, and what."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(default=None, description="Of a tool.")
    disable_parallel_tool_use: bool | None = None


class Thinking(RequestModel):
    """Thoughts before the answer; without it a model thinks as it likes, and none are sent."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: MaxTokens | None = Field(
        default=None, description="Tokens after which the thoughts are ended."
    )
    display: Literal["summarized", "omitted"] | None = Field(
        default=None, description="omitted: nothing of the thoughts is sent."
    )


class OutputFormat(RequestModel):
    """A JSON schema that the output keeps to."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(RequestModel):
    """The output's form, and how much the model is to think."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class PromptBody(RequestModel):
    """The body of POST /v1/messages/count_tokens: what a prompt is made of."""

    model: str | None = Field(default=None, description="The served model's name, or empty.")
    messages: list[MessageParam]
    system: Blocks = Field(default=[], description="A text, or text blocks.")
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(
        default=None, description="The older name of output_config.format."
    )


class MessagesBody(PromptBody):
    """The body of POST /v1/messages."""

    max_tokens: MaxTokens = Field(
        description="The output also ends where the context does, with a stop_reason of its own."
    )
    stop_sequences: Strings | None = None
    temperature: Number | None = Field(default=None, description="0 is greedy.")
    top_p: Number | None = None
    top_k: TopK | None = None
    stream: bool | None = None
