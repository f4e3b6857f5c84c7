"""The bodies of requests as pydantic models: names, types and ranges of all parameters.

Owns what JSON may hold, which /openapi.json shows. Unset and null are the same, and unknown names
are ignored. Knows nothing of `switchyard.v1`: what parameters mean together is checked by the
files that turn these models into its messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeGuard

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
)
from pydantic_core import PydanticCustomError

from frontend.bounds import MAX_PROMPTS, MAX_SAMPLES, MAX_TOP_LOGPROBS

UINT32_MAX = 2**32 - 1


def _whole_float_as_int(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _within(low: int, high: int, words: str) -> AfterValidator:
    """Refuses an integer out of its range with the range in words."""

    def check(value: int) -> int:
        if not low <= value <= high:
            most = "at most what the context holds"
            wanted = words if value < low or high < UINT32_MAX else most
            raise PydanticCustomError("out_of_range", "must be {wanted}", {"wanted": wanted})
        return value

    return AfterValidator(check)


def _is_token_ids(value: Any) -> TypeGuard[list[int]]:
    """Whether it is a list of what may be token ids; 30 ns an id, so not pydantic's own check."""
    if not isinstance(value, list):
        return False
    return not value or (
        set(map(type, value)) == {int} and 0 <= min(value) <= max(value) <= UINT32_MAX
    )


def _token_ids(value: Any) -> list[int]:
    if not _is_token_ids(value):
        raise PydanticCustomError("token_ids", f"must be a list of integers in [0, {UINT32_MAX}]")
    return value


def _string_list(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise PydanticCustomError("string_list", "must be a string or a list of strings")
    return list(value)


def _prompts(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int):
        return [value]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompts", "must be a string, token ids, or a list of either")
    if len(value) > MAX_PROMPTS:
        raise PydanticCustomError(
            "prompts", f"has {len(value)} prompts, at most {MAX_PROMPTS} are taken"
        )
    return value


def _prompt(value: Any) -> str | list[int]:
    if not isinstance(value, str) and not _is_token_ids(value):
        raise PydanticCustomError("prompt", "must be a string or a list of token ids")
    return value


def _text_part(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value not in ("text", "refusal")):
        kind = (value or "nothing")[:32]
        raise PydanticCustomError(
            "part", "is {kind}; this model reads text parts only", {"kind": kind}
        )
    return value


def _content_parts(value: Any) -> Any:
    if value is None:
        return []
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


_WHOLE = BeforeValidator(_whole_float_as_int)
UInt32 = Annotated[int, _WHOLE, Field(ge=0, le=UINT32_MAX)]
"""An integer that a message can hold; 3.0 is 3."""
Int32 = Annotated[int, _WHOLE, Field(ge=-(2**31), le=2**31 - 1)]
NumSamples = Annotated[
    int,
    _WHOLE,
    _within(1, MAX_SAMPLES, f"1 to {MAX_SAMPLES}"),
    Field(json_schema_extra={"minimum": 1, "maximum": MAX_SAMPLES}),
]
MaxTokens = Annotated[
    int,
    _WHOLE,
    _within(1, UINT32_MAX, "at least 1"),
    Field(json_schema_extra={"minimum": 1}),
]
MaxTokensOrNone = Annotated[
    int,
    _WHOLE,
    _within(0, UINT32_MAX, "at least 1, or 0 with echo"),
    Field(json_schema_extra={"minimum": 0}),
]
TopK = Annotated[int, _WHOLE, Field(ge=-1, le=UINT32_MAX)]
Seed = Annotated[int, _WHOLE, Field(ge=-(2**63), le=2**64 - 1)]
TopLogprobs = Annotated[int, _WHOLE, Field(ge=0, le=MAX_TOP_LOGPROBS)]
Number = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=UINT32_MAX)]
TokenIds = Annotated[list[int], PlainValidator(_token_ids, json_schema_input_type=list[TokenId])]
Prompt = Annotated[str | list[int], PlainValidator(_prompt)]
Strings = Annotated[list[str], PlainValidator(_string_list, json_schema_input_type=str | list[str])]


class RequestModel(BaseModel):
    """Takes JSON's types as they are: no text is read as a number."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


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


class StructuredOutputs(RequestModel):
    """The language that the output keeps to: one of these."""

    json_: Any = Field(default=None, alias="json", description="A JSON schema, or its text.")
    regex: str | None = None
    grammar: str | None = Field(default=None, description="A Lark grammar.")
    choice: Strings | None = None
    json_object: bool | None = None


class GenerationBody(RequestModel):
    """Parameters that chat completions and completions share."""

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
    logit_bias: dict[str, Number] | None = Field(
        default=None, description="Added to logits, by token id."
    )
    min_tokens: UInt32 | None = None
    stop: Strings | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = Field(default=None, description="Default: true.")
    n: NumSamples | None = Field(default=None, description="Choices for each prompt; default: 1.")
    best_of: NumSamples | None = Field(default=None, description="Must be n.")
    priority: Int32 | None = None
    response_format: ResponseFormat | None = None
    guided_json: Any = Field(default=None, description="A JSON schema, or its text.")
    guided_regex: str | None = None
    guided_grammar: str | None = Field(default=None, description="A Lark grammar.")
    guided_choice: Strings | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ContentPart(RequestModel):
    """A part of a message; parts that are no text are refused."""

    type: Annotated[Literal["text", "refusal"], BeforeValidator(_text_part)] = Field(
        default=None, validate_default=True
    )
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
        BeforeValidator(_content_parts, json_schema_input_type=str | list[ContentPart] | None),
    ] = []
    tool_call_id: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    function_call: CalledFunction | None = Field(
        default=None, description="The older form of one call."
    )


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
    parse_special_tokens: bool | None = Field(
        default=None, description="Text that spells a control token is that token."
    )

    @property
    def names_tools(self) -> bool:
        """Whether any of the parameters of tools is set."""
        parameters = (self.tools, self.tool_choice, self.functions, self.function_call)
        return any(value is not None for value in parameters)


class CompletionBody(GenerationBody):
    """The body of POST /v1/completions."""

    model_config = ConfigDict(json_schema_extra={"required": ["prompt"]})

    prompt: Annotated[
        list[Prompt],
        BeforeValidator(
            _prompts, json_schema_input_type=str | list[TokenId] | list[str | list[TokenId]]
        ),
    ] = Field(default=None, validate_default=True)
    suffix: str | None = Field(default=None, description="Must be empty.")
    echo: bool | None = Field(default=None, description="The prompt comes before the output.")
    max_tokens: MaxTokensOrNone | None = Field(default=None, description="Default: 16.")
    logprobs: TopLogprobs | None = None
