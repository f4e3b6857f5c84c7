"""The body of POST /v1/responses as pydantic models: names and types of its parameters and items.

Owns what JSON may hold, which /openapi.json shows. What an item of some type must have is checked
where it becomes a turn.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from frontend.api.http.values import MaxTokens, RequestModel, TopLogprobs, text_part
from frontend.api.openai.parameters.models import Effort, SamplingBody

_PART_TYPES = (
    "input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text",
)  # fmt: skip


def _items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("items", "must be a string or a list of items")
    return value


def _parts(value: Any) -> Any:
    if value is None:
        return []
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


class InputPart(RequestModel):
    """A part of a message, of a result or of thoughts; parts that are no text are refused."""

    type: Annotated[str, text_part(*_PART_TYPES)] = Field(default=None, validate_default=True)
    text: str | None = None
    refusal: str | None = None


_Parts = Annotated[
    list[InputPart], BeforeValidator(_parts, json_schema_input_type=str | list[InputPart] | None)
]


class InputItem(RequestModel):
    """A message, thoughts, a call or its result; without a type it is a message."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: _Parts = Field(default_factory=list)
    summary: _Parts = Field(default_factory=list)
    encrypted_content: str | None = Field(
        default=None, description="Thoughts, as a response had them here; base64, not encrypted."
    )
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = Field(default=None, description="Of the tool that was called.")
    arguments: str | None = Field(default=None, description="Of a function's call: JSON text.")
    input: str | None = Field(default=None, description="Of a custom tool's call.")
    output: _Parts = Field(default_factory=list)


class ToolFormat(RequestModel):
    """What a custom tool's input is."""

    type: str = "text"


class ResponsesTool(RequestModel):
    """A function; a custom tool, whose input is text; or a namespace of these."""

    type: str
    name: str | None = None
    description: Any = None
    parameters: dict[str, Any] | None = Field(
        default=None, description="JSON schema of a function's arguments."
    )
    strict: bool | None = Field(
        default=None, description="Objects that do not say otherwise have no other properties."
    )
    format: ToolFormat | None = None
    tools: list[ResponsesTool] | None = Field(
        default=None, description="Of a namespace: its functions and custom tools."
    )


class ChosenTool(RequestModel):
    """A tool by its name."""

    type: Literal["function", "custom"]
    name: str


class AllowedResponsesTools(RequestModel):
    """A choice among some of ``tools``; the chat template is given these alone."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ChosenTool]


ResponsesToolChoice = Annotated[
    Any,
    PlainValidator(
        lambda value: value,
        json_schema_input_type=Literal["none", "auto", "required"]
        | ChosenTool
        | AllowedResponsesTools
        | None,
    ),
]
"""Checked where the tools are known."""


class TextFormat(RequestModel):
    """What the output has to be."""

    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = Field(
        default=None, description="Objects that do not say otherwise have no other properties."
    )


class TextOptions(RequestModel):
    """How the model is to answer."""

    format: TextFormat | None = None


class ReasoningParameters(RequestModel):
    """How much the model is to think, and how it is told."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        default=None, description="Thoughts are told as the summary, whole, instead of as content."
    )
    generate_summary: Literal["auto", "concise", "detailed"] | None = Field(
        default=None, description="The older name of summary."
    )


Include = Literal["reasoning.encrypted_content", "message.output_text.logprobs"]


class ResponsesBody(SamplingBody):
    """The body of POST /v1/responses."""

    model_config = ConfigDict(json_schema_extra={"required": ["input"]})

    input: Annotated[
        list[InputItem], BeforeValidator(_items, json_schema_input_type=str | list[InputItem])
    ] = Field(default=None, validate_default=True)
    instructions: str | None = Field(default=None, description="Comes first, as the system's.")
    max_output_tokens: MaxTokens | None = Field(
        default=None, description="Default: what the context holds."
    )
    tools: list[ResponsesTool] | None = None
    tool_choice: ResponsesToolChoice = None
    parallel_tool_calls: bool | None = Field(default=None, description="Default: true.")
    text: TextOptions | None = None
    reasoning: ReasoningParameters | None = None
    include: list[Include] | None = None
    top_logprobs: TopLogprobs | None = None
    metadata: dict[str, str] | None = Field(default=None, description="Comes back as it is.")
    chat_template_kwargs: dict[str, Any] | None = None
    parse_special_tokens: bool | None = Field(
        default=None, description="Text that spells a control token is that token."
    )
