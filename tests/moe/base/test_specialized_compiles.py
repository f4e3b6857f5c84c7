"""What `moe.base.specialized_fp8` launches compiles for a Hopper GPU, and fits it."""

from __future__ import annotations

import pytest

from tests.absent_gpu import compiled


@pytest.mark.processes
def test_compiles() -> None:
    kernels = compiled("tests.moe.base.compile_specialized")
    assert len(kernels) == 12
