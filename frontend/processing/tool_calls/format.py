"""What is asked of the form in which a model writes calls, and of a reader of its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from frontend.processing.tool_calls.events import Event, content
from frontend.processing.tool_calls.grammar import HeldCalls
from frontend.processing.tool_calls.tools import Tool


class TurnReader(Protocol):
    """Turns the text of one turn into events.

    However the text is cut, the events are the same but for how content and arguments are cut. No
    character of what is no call is lost, but blanks beside calls.

    Attributes:
        num_calls: calls that it has found.
    """

    num_calls: int

    def push(self, text: str) -> list[Event]:
        """Events that no later text can change."""
        ...

    def flush(self) -> list[Event]:
        """Events of the text that was held back, at its end."""
        ...


class ToolFormat(Protocol):
    """The form in which a model writes calls.

    Attributes:
        name: as --tool-call-parser and GetModelInfo have it.
        kept_tokens: special tokens that its readers need to see in the text.
    """

    @property
    def name(self) -> str: ...
    @property
    def kept_tokens(self) -> Sequence[str]: ...

    def reader(
        self, tools: Mapping[str, Tool], max_calls: int | None = None, *, is_held: bool = False
    ) -> TurnReader:
        """A reader of one turn.

        Args:
            tools: that may be called, by name.
            max_calls: what comes behind as many is content; None: any number.
            is_held: the output is held to calls; where it is cut off within one, that is told as
                far as it came.
        """
        ...

    def held(self, tools: Sequence[Tool], *, parallel: bool = True) -> HeldCalls | None:
        """What an output is held to that consists of calls as the model writes them; None where no
        grammar says it.

        Args:
            parallel: several calls may come.

        Raises:
            RequestError: a schema refers to itself in a way that cannot be moved.
        """
        ...

    def held_where_begun(self, tools: Sequence[Tool], *, parallel: bool = True) -> HeldCalls | None:
        """The same of free text that may have calls: what is held is a call from its first tag on;
        None where that is no token of this model, too.
        """
        ...


class NoFormat:
    """The format of a model whose calls are not known: they are content."""

    name = ""
    kept_tokens: Sequence[str] = ()

    def reader(
        self, tools: Mapping[str, Tool], max_calls: int | None = None, *, is_held: bool = False
    ) -> TurnReader:
        """A reader that finds none."""
        return PlainText()

    def held(self, tools: Sequence[Tool], *, parallel: bool = True) -> HeldCalls | None:
        """No grammar."""
        return None

    held_where_begun = held


NO_FORMAT = NoFormat()


class PlainText:
    """A reader that takes all text as content."""

    num_calls = 0

    def push(self, text: str) -> list[Event]:
        """The text."""
        return content(text)

    def flush(self) -> list[Event]:
        """Nothing was held back."""
        return []
