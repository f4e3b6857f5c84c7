"""What a layer of latent attention launches compiles for a Hopper GPU, and fits it."""

from __future__ import annotations

import pytest

from tests.absent_gpu import compiled

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
    kernels = compiled("tests.workers.models.compile_mla", model, str(tp))
    assert {"_latent_kernel", "_absorb_kernel", "_chunk_kernel", "_join_kernel"} <= set(kernels)
    assert {"_tile_kernel", "_project_kernel"} <= set(kernels)
