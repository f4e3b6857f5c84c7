"""Command-line flags that are the fields of a dataclass.

`flag` makes a field. That one line gives the flag its name, type, default, bounds and help; the
parser, the checks, their error texts, and what one command passes on to another are read from it.
Knows no flag by name.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from switchyard.sizes import size

_Table = TypeVar("_Table")
_KEY = "flag"
_METAVARS: Mapping[type, str] = {int: "N", float: "X", str: "TEXT", Path: "FILE", tuple: "TEXT"}


class _Parser(Protocol):
    """A parser or a group of its arguments."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag.

    Attributes:
        what: what it sets, in a line, without the default.
        name: with both dashes; of a field x_y it is --x-y, or --no-x-y where the default is True.
        aliases: other names.
        metavar: what help shows for the value.
        choices: the values taken; empty: any of the type.
        spellings: other words, each with the choice that it means.
        unit: what a number counts; of tokens, 32k may be written for 32000 (`sizes.py`).
        above, at_least, at_most: bounds of a number.
        unset: what a field without a value means, in words; the flag is required where neither
            this nor a default is there.
        shared: `switchyard serve` takes it and passes it on.
        seldom: for those who know why; its help lists it apart.
        field, kind, default: name, type and default of the dataclass's field.
    """

    what: str
    name: str = ""
    aliases: tuple[str, ...] = ()
    metavar: str = ""
    choices: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    unit: str = ""
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    unset: str = ""
    shared: bool = True
    seldom: bool = False
    field: str = ""
    kind: type = str
    default: Any = None

    @property
    def is_switch(self) -> bool:
        """It takes no value."""
        return self.kind is bool

    @property
    def help(self) -> str:
        """What it sets, and its default."""
        if self.is_switch:
            return self.what
        if self.unset:
            return f"{self.what}; default: {self.unset}"
        if self.default is dataclasses.MISSING:
            return f"{self.what}; required"
        shown = f"{self.default:g}" if self.kind is float else self.default
        return f"{self.what}; default: {shown}{self.unit and f' {self.unit}'}"

    def add(self, parser: _Parser, *, required: bool) -> None:
        """Add it to a parser, whose result has it as text, and only if it was given."""
        names = (self.name, *self.aliases)
        common = {"dest": self.field, "default": argparse.SUPPRESS, "help": self.help}
        if self.is_switch:
            const = not self.default
            parser.add_argument(*names, action="store_const", const=const, **common)
            return
        choices = f"{{{','.join(self.choices)}}}" if self.choices else ""
        metavar = self.metavar or choices or self.unit.upper() or _METAVARS[self.kind]
        action = _Joined if self.kind is tuple else "store"
        parser.add_argument(*names, action=action, metavar=metavar, required=required, **common)

    def value(self, text: str) -> Any:
        """What a text says.

        Raises:
            ValueError: one line naming the flag, the text and what to pass.
        """
        if self.kind is tuple:
            return tuple(text.split(","))
        text = dict(self.spellings).get(text, text)
        read = size if self._takes_sizes else self.kind
        try:
            return read(text)
        except ValueError:
            raise self._refusal(text) from None

    def check(self, value: Any) -> None:
        """Refuse a value that is out of bounds or none of the choices; None is unset.

        Raises:
            ValueError: one line naming the flag, the value and what to pass.
        """
        if value is None or (not self.choices and self.kind not in (int, float)):
            return
        if self.choices:
            is_good = value in self.choices
        else:
            is_good = math.isfinite(value) and not (
                (self.above is not None and value <= self.above)
                or (self.at_least is not None and value < self.at_least)
                or (self.at_most is not None and value > self.at_most)
            )
        if not is_good:
            raise self._refusal(value)

    @property
    def _takes_sizes(self) -> bool:
        return self.kind is int and self.unit == "tokens"

    def _refusal(self, value: Any) -> ValueError:
        return ValueError(f"{self.name} is {value!r}; pass {self._remedy()}")

    def _remedy(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        kind = "a whole number" if self.kind is int else self.unit or "a number"
        kind += ", or one such as 32k" if self._takes_sizes else ""
        bounds = [
            f"{words} {bound:g}"
            for words, bound in (
                ("above", self.above), ("at least", self.at_least), ("at most", self.at_most),
            )
            if bound is not None
        ]  # fmt: skip
        return f"{kind}, {' and '.join(bounds)}" if bounds else kind


class _Joined(argparse.Action):
    """A list's flag may be repeated: its values are joined as if they were one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add one value."""
        earlier = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{earlier},{values}" if earlier else values)


def flag(
    what: str,
    default: Any = dataclasses.MISSING,
    *,
    name: str = "",
    aliases: tuple[str, ...] = (),
    metavar: str = "",
    choices: tuple[str, ...] = (),
    spellings: tuple[tuple[str, str], ...] = (),
    unit: str = "",
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    unset: str = "",
    shared: bool = True,
    seldom: bool = False,
) -> Any:
    """A field of a dataclass that is a flag; the arguments are the attributes of `Flag`."""
    made = Flag(
        what=what, name=name, aliases=aliases, metavar=metavar, choices=choices,
        spellings=spellings, unit=unit, above=above, at_least=at_least, at_most=at_most,
        unset=unset, shared=shared, seldom=seldom,
    )  # fmt: skip
    return dataclasses.field(default=default, metadata={_KEY: made})


@functools.cache
def flags_of(table: type) -> tuple[Flag, ...]:
    """The flags of a dataclass, in its order."""
    hints = typing.get_type_hints(table)
    return tuple(
        dataclasses.replace(
            field.metadata[_KEY],
            name=field.metadata[_KEY].name or _name_of(field),
            field=field.name,
            kind=_kind_of(hints[field.name]),
            default=field.default,
        )
        for field in dataclasses.fields(table)
        if _KEY in field.metadata
    )


def _name_of(field: dataclasses.Field[Any]) -> str:
    return ("--no-" if field.default is True else "--") + field.name.replace("_", "-")


def _kind_of(hint: Any) -> type:
    """int of ``int | None``, tuple of ``tuple[str, ...]``."""
    if isinstance(hint, types.UnionType):
        [hint] = (each for each in typing.get_args(hint) if each is not types.NoneType)
    found: type = typing.get_origin(hint) or hint
    return found


def add_flags(parser: _Parser, table: type) -> None:
    """Add all flags of a table to the parser of the command that reads it."""
    for each in flags_of(table):
        each.add(parser, required=each.default is dataclasses.MISSING and not each.unset)


def add_shared_flags(parser: _Parser, table: type, seldom: _Parser | None = None) -> None:
    """Add the flags that a command takes for another one; none is required there.

    Args:
        seldom: the group of those that are seldom needed; the parser by default.
    """
    for each in flags_of(table):
        if each.shared:
            each.add(seldom if each.seldom and seldom else parser, required=False)


def given(table: type, namespace: argparse.Namespace) -> dict[str, Any]:
    """Fields that were given, by name, each within its bounds.

    Raises:
        ValueError: one line naming the flag, the value and what to pass.
    """
    return {
        each.field: _checked(each, getattr(namespace, each.field))
        for each in flags_of(table)
        if hasattr(namespace, each.field)
    }


def _checked(each: Flag, text: Any) -> Any:
    value = text if each.is_switch else each.value(text)
    each.check(value)
    return value


def read(table: type[_Table], namespace: argparse.Namespace) -> _Table:
    """A table made from what was given, and from its defaults.

    Raises:
        ValueError: one line naming the flag, the value and what to pass.
    """
    return table(**given(table, namespace))


def check(config: object) -> None:
    """Refuse fields of a table that are out of bounds; for its ``__post_init__``.

    Raises:
        ValueError: one line naming the flag, the value and what to pass.
    """
    table: type = type(config)
    for each in flags_of(table):
        each.check(getattr(config, each.field))


def words(table: type, namespace: argparse.Namespace) -> list[str]:
    """The shared flags that were given, as words of another command's line.

    Raises:
        ValueError: one line naming the flag, the value and what to pass.
    """
    passed: list[str] = []
    for each in flags_of(table):
        if each.shared and hasattr(namespace, each.field):
            text = getattr(namespace, each.field)
            _checked(each, text)
            passed += [each.name] if each.is_switch else [each.name, text]
    return passed
