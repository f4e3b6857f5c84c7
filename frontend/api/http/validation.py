"""A body's JSON object checked against a model, and the words for values that it refuses.

Knows no parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from frontend.errors import RequestError, invalid_field


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
