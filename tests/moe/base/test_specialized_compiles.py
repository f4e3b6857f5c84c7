"""What `moe.base.specialized_fp8` launches compiles for a Hopper GPU, and fits it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.absent_gpu import SHARED_BYTES


@pytest.mark.processes
def test_compiles() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.moe.base.compile_specialized"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    launches = [line.split() for line in result.stdout.splitlines()]
    assert len(launches) == 6
    assert max(int(shared) for _, shared in launches) <= SHARED_BYTES
