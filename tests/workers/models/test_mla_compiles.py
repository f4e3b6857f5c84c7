"""What a layer of latent attention launches compiles for a Hopper GPU, and fits it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.absent_gpu import SHARED_BYTES

pytestmark = pytest.mark.processes

ALL = ["deepseek-v2-lite", "deepseek-v3", "glm-4.7-flash", "mistral-small-4"]


@pytest.mark.parametrize(
    ("model", "tp"),
    [
        ("deepseek-v2-lite", 1),
        *(pytest.param(model, tp, marks=pytest.mark.grid) for model in ALL for tp in (1, 4)),
    ],
)
def test_compiles(model: str, tp: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.workers.models.compile_mla", model, str(tp)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    launches = [line.split() for line in result.stdout.splitlines()]
    kernels = {name for name, _ in launches}
    assert {"_latent_kernel", "_absorb_kernel", "_chunk_kernel", "_join_kernel"} <= kernels
    assert {"_tile_kernel", "_project_kernel"} <= kernels
    assert max(int(shared) for _, shared in launches) <= SHARED_BYTES
