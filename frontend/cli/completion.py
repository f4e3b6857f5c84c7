"""`switchyard completion SHELL`: a script with which a shell completes commands and flags.

Owns what may follow a flag, which its metavar says. shtab writes the script.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import shtab

_COMPLETED = {"FILE": shtab.FILE, "FOLDER": shtab.DIRECTORY, "MODEL": shtab.DIRECTORY}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The argument of ``switchyard completion``."""
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="write its script to stdout")


def write_script(parser: argparse.ArgumentParser, shell: str) -> int:
    """Write a shell's script for a command's parser, which can parse nothing afterwards."""
    for each in _all_parsers(parser):
        for action in each._actions:
            _say_what_follows(action)
    sys.stdout.write(shtab.complete(parser, shell) + "\n")
    return 0


def _all_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _all_parsers(each)


def _say_what_follows(action: argparse.Action) -> None:
    name = action.metavar if isinstance(action.metavar, str) else ""
    if name in _COMPLETED:
        action.complete = _COMPLETED[name]  # type: ignore[attr-defined]
    elif name.startswith("{"):
        action.choices = name.strip("{}").split(",")
