"""The table of what sampling costs, at sizes that take no time."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sampling
from benchmarks.sampling import KINDS, main


def test_every_kind_is_measured_at_every_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps really run; the table has what each kind adds to the plain ones of its size."""
    time_steps, times = sampling.time_steps, itertools.count(100.0)

    def numbered(*arguments: Any) -> tuple[float, float]:
        assert min(time_steps(*arguments)) > 0.0
        now = next(times)
        return now, 2 * now

    monkeypatch.setattr(sampling, "time_steps", numbered)
    path = tmp_path / "table.json"
    sizes = ["--batch-sizes", "1", "3", "--vocab-size", "301", "--steps", "2"]
    main([*sizes, "--device", "cpu", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["batch"], row["kind"]) for row in rows] == [
        (size, kind) for size in (1, 3) for kind in KINDS
    ]
    added = [number for _ in (1, 3) for number in range(1, len(KINDS) + 1)]
    assert [(row["device ms"], row["host ms"]) for row in rows] == [(n, 2 * n) for n in added]
