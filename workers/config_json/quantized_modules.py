"""Which of a model's matrices have fewer bits than the others, and how these stand.

Owns how a description names modules. Torch-free. Knows no method of quantization, and not which
modules there are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from moe.base.weight_format import WeightFormat
from switchyard.model_files import shown

_MAX_PATTERNS = 100
_MAX_PATTERN = 200  # characters


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModuleNames:
    """Modules by their dotted names or parts of these, each with all that is in it.

    Attributes:
        names: as they are.
        patterns: regular expressions for what a name begins with.
    """

    names: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()

    def __contains__(self, module: str) -> bool:
        parts = module.split(".")
        count = len(parts)
        pieces = [
            ".".join(parts[start:end])
            for start in range(count)
            for end in range(start + 1, count + 1)
        ]
        if not self.names.isdisjoint(pieces):
            return True
        return any(pattern.match(module) for pattern in self.patterns)

    @classmethod
    def read(cls, key: str, value: Any) -> ModuleNames:
        """From a list of names, of names with ``*``, and of expressions behind ``re:``.

        Raises:
            ValueError: one line naming the key and what is wrong.
        """
        entries = value or []
        if not isinstance(entries, list) or any(type(each) is not str for each in entries):
            raise ValueError(f"{key} is {shown(value)}; it must be a list of modules' names")
        names = frozenset(each for each in entries if not _is_pattern(each))
        patterns = [each for each in entries if _is_pattern(each)]
        if len(patterns) > _MAX_PATTERNS or any(len(each) > _MAX_PATTERN for each in patterns):
            raise ValueError(
                f"{key} has {len(patterns)} patterns; at most {_MAX_PATTERNS} of {_MAX_PATTERN} "
                "characters are read"
            )
        return cls(names=names, patterns=tuple(_compiled(key, each) for each in patterns))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Which of a model's matrices have fewer bits than its type, and how they stand.

    Attributes:
        weight_format: of all of them.
        skipped: modules whose weights have the model's type.
    """

    weight_format: WeightFormat
    skipped: ModuleNames = ModuleNames()

    def format_of(self, modules: Iterable[str]) -> WeightFormat | None:
        """The format of modules that are computed as one matrix; None: the model's type.

        Raises:
            ValueError: one line naming two of them that differ.
        """
        first: dict[bool, str] = {}
        for module in modules:
            first.setdefault(module in self.skipped, module)
        if len(first) == 2:
            raise ValueError(
                f"config.json has {first[False]} quantized and {first[True]} not, which are "
                "computed as one matrix here; serve a checkpoint that has both or neither"
            )
        return self.weight_format if False in first else None


def _is_pattern(entry: str) -> bool:
    return entry.startswith("re:") or "*" in entry


def _compiled(key: str, entry: str) -> re.Pattern[str]:
    """A ``*`` stands for anything, and such a name for a module with all that is in it."""
    if not entry.startswith("re:"):
        pieces = map(re.escape, entry.split("*"))
        return re.compile(rf"{'.*'.join(pieces)}(?:\.|$)")
    try:
        return re.compile(entry.removeprefix("re:"))
    except re.error as error:
        raise ValueError(f"{key} has {shown(entry)}: {error}") from None
