"""On GPUs the demo is as right in every layout as transformers, in bf16 and fewer bits, with graphs
and without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

# The layouts of `python -m benchmarks.sanity`, one rank that launches kernel by kernel, and formats
# of fewer bits.
SANITY = """
from benchmarks import sanity
sanity.LAYOUTS[1] += (
    "--cuda-graphs off",
    "--kv-cache-dtype fp8_e4m3",
    "--quantization fp8",
    "--quantization fp8 --kv-cache-dtype fp8_e4m3",
    "--quantization int4",
)
sanity.LAYOUTS[2] += ("--tp 2 --quantization fp8", "--dp 2 --quantization fp8")
sanity.main()
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("ranks", "layouts"), [(1, 7), (2, 10)])
def test_the_demo_is_as_accurate_in_every_layout(ranks: int, layouts: int, tmp_path: Path) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    torch.cuda.empty_cache()  # the servers measure what is free
    path = tmp_path / "sanity.json"
    command = [sys.executable, "-c", SANITY, "--ranks", str(ranks), "--count", "15"]
    done = subprocess.run([*command, "--device", "cuda", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert done.returncode == 0, rows
    assert len(rows) == 1 + layouts
    assert all(row["accuracy %"] >= 95 for row in rows)
