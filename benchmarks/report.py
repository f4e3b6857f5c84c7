"""How a benchmark shows its progress and its result: a bar on long work, a table, and JSON.

Knows nothing of what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

Row = dict[str, Any]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", type=Path, help="also write the result to this file; - is stdout")


def progress() -> Progress:
    """A bar on stderr, so that stdout stays the result."""
    return Progress(console=Console(stderr=True))


def note(bar: Progress, row: Row) -> None:
    """One row as a line above the bar, for whoever ends a long run before its table."""
    cells = (f"{name} {_cell(value)}" for name, value in row.items())
    bar.console.print(", ".join(cells), soft_wrap=True)


def show(title: str, rows: Sequence[Row], path: Path | None, **facts: Any) -> None:
    """Print rows as a table, and write them with the facts around them."""
    if str(path) == "-":
        json.dump({"title": title, **facts, "rows": list(rows)}, sys.stdout, indent=1)
        print()
        return
    table = Table(title=title, title_justify="left")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        numeric = any(isinstance(row.get(name), int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    # A pipe or a file has no width to keep to.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for name, value in facts.items():
        print(f"{name.replace('_', ' ')}: {_cell(value)}")
    if path is not None:
        path.write_text(json.dumps({"title": title, **facts, "rows": list(rows)}, indent=1))


def percentile(values: Sequence[float], share: float) -> float:
    """The value at a share of the sorted values, nearest rank; NaN of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
