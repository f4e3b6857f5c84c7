"""A parser that takes whole names and, of a mistake, says one line: what was meant, where to look.

Owns the words of such errors. Knows no flag by name.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

_NUM_NEAREST = 3


class Parser(argparse.ArgumentParser):
    """A command's parser. Those of its subcommands are of the same kind.

    Args:
        hints: by a flag that other programs have and this one has not, what to do here.
    """

    bad_arguments = 2
    """Exit code."""

    def __init__(self, *, hints: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._hints = hints or {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Take all: what is not known is an error of the command that it was typed to."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._about_unknown(unknown))
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """End the program with one line."""
        self.exit(self.bad_arguments, f"{self.prog}: {message}; see `{self.prog} --help`\n")

    def _about_unknown(self, words: Sequence[str]) -> str:
        flag = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
        if flag is None:
            return f"{' '.join(words)!r} is too much"
        if flag in self._hints:
            return f"there is no flag {flag} here: {self._hints[flag]}"
        nearest = self._nearest(flag)
        return f"there is no flag {flag}" + (f", but {' and '.join(nearest)}" if nearest else "")

    def _nearest(self, flag: str) -> list[str]:
        """Flags that begin with it, else those that look like it."""
        names = [name for name in self._option_string_actions if name.startswith("--")]
        longer = [name for name in names if name.startswith(flag)]
        return (longer or difflib.get_close_matches(flag, names, cutoff=0.7))[:_NUM_NEAREST]
