"""What a start has run is all that steps of service launch: none compiles while requests wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.workers.gpu.test_families import REAL

pytestmark = pytest.mark.processes

CASES = [
    ("qwen3.5-35b-a3b", "fp8", False),
    ("olmoe-1b-7b", "fp8", True),
    *(
        pytest.param(name, quantization, captured, marks=pytest.mark.grid)
        for name in REAL
        for quantization in ("auto", "fp8", "int4")
        for captured in (False, True)
    ),
]


@pytest.mark.parametrize(("name", "quantization", "captured"), CASES)
def test_no_step_compiles(name: str, quantization: str, captured: bool) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.workers.rank.served", name, quantization]
    command += ["captured"] if captured else []
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    known, *new = result.stdout.splitlines()
    assert int(known) > 60
    assert new == []
