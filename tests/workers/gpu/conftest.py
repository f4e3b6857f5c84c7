"""What the tests of a rank on a GPU share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _give_memory_back() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()
