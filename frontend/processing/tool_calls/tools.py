"""Tools as every API has them: functions that a model may call, and which of them it has to.

Knows no API's names for them, and no form of calls.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from frontend.processing.constraints.schema_edit import Schema, closed

Mode = Literal["none", "auto", "required", "named"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One function.

    Attributes:
        parameters: JSON schema of the arguments, as it was sent.
        strict: calls fit the schema, in which objects are closed that do not say otherwise.
        sent: what the chat template is given.
        field: names the schema in errors.
    """

    name: str
    parameters: Schema
    strict: bool = False
    sent: Any
    field: str

    @property
    def schema(self) -> Schema:
        """JSON schema that arguments are held to."""
        return closed(self.parameters) if self.strict else self.parameters


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """What may be called, and whether something must be.

    Attributes:
        mode: named is a call of one function, required one of any.
        names: functions that may be called.
    """

    mode: Mode
    names: tuple[str, ...]
