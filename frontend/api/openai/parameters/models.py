"""The bodies of requests as pydantic models: names, types and ranges of all parameters.

Owns what JSON may hold, which /openapi.json shows. Unset and null are the same; names that stand
neither here nor in `unsupported.py` are ignored. Knows nothing of `switchyard.v1`: what parameters
mean together is checked by the files that turn these models into its messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator

from frontend.api.http.values import (
    Int32,
    MaxTokens,
    MaxTokensOrNone,
    Number,
    NumSamples,
    PartType,
    Prompts,
    RequestModel,
    Seed,
    Strings,
    ThinkingTokens,
    TokenIds,
    TopK,
    TopLogprobs,
    UInt32,
    content_parts,
)

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""How much a model is to think."""


class StreamOptions(RequestModel):
    """What a stream reports beside its choices."""

    include_usage: bool | None = Field(
        default=None, description="The stream's last chunk has no choices, and the usage."
    )


class JsonSchemaFormat(RequestModel):
    """A JSON schema under a name; the name is ignored, and output is held to every schema."""

    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = Field(
        default=None, description="Objects that do not say otherwise have no other properties."
    )


class ResponseFormat(RequestModel):
    """What the output has to be."""

    type: Literal["text", "json_object", "json_schema"] | None = None
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(
        default=None, alias="schema", description="Instead of json_schema; of json_object too."
    )


class StructuredOutputs(RequestModel):
    """The language that the output keeps to: one of these."""

    json_: Any = Field(default=None, alias="json", description="A JSON schema, or its text.")
    regex: str | None = None
    grammar: str | None = Field(default=None, description="A Lark grammar.")
    choice: Strings | None = None
    json_object: bool | None = None


class SamplingBody(RequestModel):
    """Parameters of every API that generates."""

    model: str | None = Field(default=None, description="The served model's name, or empty.")
    temperature: Number | None = Field(default=None, description="0 is greedy.")
    top_p: Number | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    top_k: TopK | None = Field(default=None, description="-1 or 0 turns it off.")
    seed: Seed | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Strings | None = Field(
        default=None, description="Texts whose tokens never come one after the other."
    )
    logit_bias: dict[str, Number] | None = Field(
        default=None, description="Added to logits, by token id."
    )
    min_tokens: UInt32 | None = None
    stop: Strings | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = Field(default=None, description="Default: true.")
    priority: Int32 | None = None
    stream: bool | None = None


class GenerationBody(SamplingBody):
    """Parameters that chat completions and completions share."""

    prompt_logprobs: TopLogprobs | None = Field(
        default=None, description="Of the prompt's tokens, with alternatives; not of a stream."
    )
    n: NumSamples | None = Field(default=None, description="Choices for each prompt; default: 1.")
    response_format: ResponseFormat | None = None
    guided_json: Any = Field(default=None, description="A JSON schema, or its text.")
    guided_regex: str | None = None
    guided_grammar: str | None = Field(default=None, description="A Lark grammar.")
    guided_choice: Strings | None = None
    structured_outputs: StructuredOutputs | None = None
    stream_options: StreamOptions | None = None


class ContentPart(RequestModel):
    """A part of a message; parts that are no text are refused."""

    type: PartType = Field(default=None, validate_default=True)
    text: str | None = None
    refusal: str | None = None


class CalledFunction(RequestModel):
    """The function of a call, with its arguments as JSON text."""

    name: str | None = None
    arguments: str | None = None


class MessageToolCall(RequestModel):
    """A call that the assistant made in an earlier turn."""

    id: str | None = None
    function: CalledFunction | None = None


class Message(RequestModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        list[ContentPart],
        BeforeValidator(content_parts, json_schema_input_type=str | list[ContentPart] | None),
    ] = Field(default=[])
    tool_call_id: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    function_call: CalledFunction | None = Field(
        default=None, description="The older form of one call."
    )
    reasoning_content: str | None = Field(
        default=None, description="What an assistant thought before the turn."
    )
    reasoning: str | None = Field(default=None, description="Another name of reasoning_content.")


class Function(RequestModel):
    """A function that the model may call."""

    name: str | None = None
    description: Any = None
    parameters: dict[str, Any] | None = Field(
        default=None, description="JSON schema of the arguments."
    )
    strict: bool | None = Field(
        default=None, description="Objects that do not say otherwise have no other properties."
    )


class Tool(RequestModel):
    """A tool; the chat template is given the object as it was sent."""

    type: Literal["function"]
    function: Function | None = None


class NamedFunction(RequestModel):
    """The name of a function of ``tools``."""

    name: str


class NamedTool(RequestModel):
    """A call of one function by name."""

    type: Literal["function"]
    function: NamedFunction


class AllowedFunctions(RequestModel):
    """Functions of ``tools`` that may be called; required: one has to be."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedTools(RequestModel):
    """A choice among some of ``tools``; the chat template is given these alone."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions


ToolChoice = Annotated[
    Any,
    PlainValidator(
        lambda value: value,
        json_schema_input_type=Literal["none", "auto", "required"]
        | NamedTool
        | AllowedTools
        | None,
    ),
]
"""Checked where the tools are known."""
FunctionChoice = Annotated[
    Any,
    PlainValidator(
        lambda value: value,
        json_schema_input_type=Literal["none", "auto"] | NamedFunction | None,
    ),
]


class ChatBody(GenerationBody):
    """The body of POST /v1/chat/completions."""

    model_config = ConfigDict(json_schema_extra={"required": ["messages"]})

    messages: list[Message] | None = None
    max_tokens: MaxTokens | None = Field(
        default=None, description="Default: what the context holds."
    )
    max_completion_tokens: MaxTokens | None = Field(
        default=None, description="The newer name of max_tokens."
    )
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = Field(default=None, description="Default: true.")
    functions: list[Function] | None = Field(
        default=None, description="The older form of tools: answers have function_call."
    )
    function_call: FunctionChoice = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Effort | None = Field(
        default=None, description="Told to the chat template; bounds the thoughts."
    )
    max_thinking_tokens: ThinkingTokens | None = Field(
        default=None, description="Tokens after which the thoughts are ended."
    )
    thinking_budget: ThinkingTokens | None = Field(
        default=None, description="The same by another name."
    )
    thinking_token_budget: ThinkingTokens | None = Field(
        default=None, description="The same by another name."
    )
    include_reasoning: bool | None = Field(
        default=None, description="False: thoughts are not sent; usage counts them."
    )
    parse_special_tokens: bool | None = Field(
        default=None, description="Text that spells a control token is that token."
    )
    continue_final_message: bool | None = Field(
        default=None, description="Goes on with the last message, which is an assistant's."
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="Default: true, but with continue_final_message."
    )


class CompletionBody(GenerationBody):
    """The body of POST /v1/completions."""

    model_config = ConfigDict(json_schema_extra={"required": ["prompt"]})

    prompt: Prompts = Field(default=None, validate_default=True)
    echo: bool | None = Field(default=None, description="The prompt comes before the output.")
    max_tokens: MaxTokensOrNone | None = Field(default=None, description="Default: 16.")
    logprobs: TopLogprobs | None = None
