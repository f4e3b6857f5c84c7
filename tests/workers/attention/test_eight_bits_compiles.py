"""Attention that writes eight bits compiles for a Hopper GPU, and fits it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.absent_gpu import SHARED_BYTES

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("dim", [128, pytest.param(256, marks=pytest.mark.grid)])
def test_compiles(dim: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.workers.attention.compile_eight_bits", str(dim)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    launches = [line.split() for line in result.stdout.splitlines()]
    names = [name for name, _ in launches]
    assert names.count("_tile_kernel") == 6
    assert names.count("_chunk_kernel") == 8
    assert names.count("_join_kernel") == 4
    assert max(int(shared) for _, shared in launches) <= SHARED_BYTES
