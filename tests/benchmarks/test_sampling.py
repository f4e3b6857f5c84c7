"""The table of what sampling costs, at sizes that take no time."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.sampling import KINDS, main


def test_every_kind_is_measured_at_every_size(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    sizes = ["--batch-sizes", "1", "3", "--vocab-size", "301", "--steps", "2"]
    main([*sizes, "--device", "cpu", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["batch"], row["kind"]) for row in rows] == [
        (size, kind) for size in (1, 3) for kind in KINDS
    ]
    assert all(row["device ms"] > 0.0 for row in rows if row["kind"] == "everything")
