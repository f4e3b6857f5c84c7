"""On GPUs the demo is as right in every layout as transformers, in bf16."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu


@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_demo_is_as_accurate_in_every_layout(ranks: int, tmp_path: Path) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    path = tmp_path / "sanity.json"
    command = [sys.executable, "-m", "benchmarks.sanity", "--ranks", str(ranks), "--count", "15"]
    done = subprocess.run([*command, "--device", "cuda", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert done.returncode == 0, rows
    assert len(rows) == 1 + {1: 2, 2: 8}[ranks]
    assert all(row["accuracy %"] >= 95 for row in rows)
