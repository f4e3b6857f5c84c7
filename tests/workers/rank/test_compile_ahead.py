"""What a start compiles before it runs anything is all that it launches, and is done once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers.families.draws import FAMILIES

pytestmark = pytest.mark.processes


def counts(cache: Path, *arguments: str) -> list[int]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", "tests.workers.rank.ahead", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return [int(word) for word in result.stdout.split()]


@pytest.mark.parametrize(
    ("family", "seed", "compiled"),
    [
        ("laguna", 1, False),
        ("deepseek_v2", 1, True),
        *(pytest.param(family, 2, True, marks=pytest.mark.grid) for family in FAMILIES),
    ],
)
def test_layers_of_each_kind_launch_what_the_whole_model_does(
    family: str, seed: int, compiled: bool, tmp_path: Path
) -> None:
    arguments = [family, str(seed), *["compile"] * compiled]
    layers, kept, kernels, missed, steps = counts(tmp_path, *arguments)
    assert kept < layers
    assert kernels > 20
    assert not missed
    if compiled:
        assert steps > 10
        # Another process on the same cache has nothing to compile.
        assert counts(tmp_path, *arguments)[-1] == 1
