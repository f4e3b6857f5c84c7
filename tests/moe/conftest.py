"""What all tests of moe share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_one_seed() -> None:
    """Small tensors: more threads only cost, and every test starts from the same draws."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
