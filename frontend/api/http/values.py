"""Values of requests' bodies: their types, a body checked against its model, and what is said of a
value that does not fit.

Knows no parameter by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from frontend.bounds import MAX_PROMPTS, MAX_SAMPLES, MAX_TOP_LOGPROBS
from frontend.errors import RequestError, invalid_field
from frontend.processing.sampling_params import FLOAT32_MAX, check_range
from switchyard.v1 import inference_pb2 as pb

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
        raise PydanticCustomError(
            "prompt", f"must be a string or a list of integers in [0, {UINT32_MAX}]"
        )
    return value


def text_part(*kinds: str) -> BeforeValidator:
    """Refuses the type of a message's part that is none of these, which are text."""

    def check(value: Any) -> Any:
        if value is None or (isinstance(value, str) and value not in kinds):
            kind = (value or "nothing")[:32]
            raise PydanticCustomError(
                "part", "is {kind}; this model reads text parts only", {"kind": kind}
            )
        return value

    return BeforeValidator(check)


def content_parts(value: Any) -> Any:
    """A message's content as a list of parts, of which a string is one."""
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
ThinkingTokens = Annotated[
    int,
    _WHOLE,
    _within(0, UINT32_MAX, "0 or more"),
    Field(json_schema_extra={"minimum": 0}),
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
Prompts = Annotated[
    list[Prompt],
    BeforeValidator(
        _prompts, json_schema_input_type=str | list[TokenId] | list[str | list[TokenId]]
    ),
]
PartType = Annotated[Literal["text", "refusal"], text_part("text", "refusal")]
Strings = Annotated[list[str], PlainValidator(_string_list, json_schema_input_type=str | list[str])]


class RequestModel(BaseModel):
    """Takes JSON's types as they are: no text is read as a number."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """The model of a body.

    Raises:
        RequestError: INVALID_ARGUMENT with the name of the first parameter that is wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid_parameter(error.errors(include_url=False)[0]) from error


def invalid_parameter(error: ErrorDetails) -> RequestError:
    """The refusal of a value that a model of a body does not take."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in error["loc"])
    return invalid_field(path.removeprefix("."), _complaint(error))


# What a value of the wrong type should have been, by pydantic's error.
_EXPECTED: Mapping[str, str] = {
    "string_type": "a string",
    "bool_type": "true or false",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "int_type": "an integer",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}


def _complaint(error: ErrorDetails) -> str:
    """What is wrong with a value, to be read after its name; never the value's own text."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    match kind:
        case "greater_than_equal":
            return f"is {_number(value)}, must be at least {context['ge']}"
        case "less_than_equal":
            return f"is {_number(value)}, must be at most {context['le']}"
        case "out_of_range":
            return f"is {_number(value)}, must be {context['wanted']}"
        case "literal_error":
            return f"must be {context['expected']}"
        case "missing":
            return "is missing; send it"
        case _ if kind in _EXPECTED:
            return f"is {_kind(value)}, must be {_EXPECTED[kind]}"
        case _:
            return error["msg"]


def _number(value: int) -> str:
    return f"{value:.6g}" if abs(value) < 1 << 128 else "huge"  # a float has a largest value


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


def set_numbers(body: RequestModel, names: Sequence[str], sampling: pb.SamplingParams) -> None:
    """Sets those that are not None.

    Raises:
        RequestError: one does not fit the message.
    """
    for name in names:
        value = getattr(body, name)
        if value is not None:
            if abs(value) > FLOAT32_MAX:  # it would be infinite in the message
                check_range(name, value)
            setattr(sampling, name, value)
