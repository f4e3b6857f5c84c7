"""Attention that writes eight bits compiles for a Hopper GPU, and fits it."""

from __future__ import annotations

import pytest

from tests.absent_gpu import compiled

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("dim", [128, pytest.param(256, marks=pytest.mark.grid)])
def test_compiles(dim: int) -> None:
    kernels = compiled("tests.workers.attention.compile_eight_bits", str(dim))
    assert kernels.count("_tile_kernel") == 6
    assert kernels.count("_chunk_kernel") == 8
    assert kernels.count("_join_kernel") == 4
