"""Types of the values in requests' bodies, and what is said of a value that does not fit.

Knows no parameter by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator
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
