"""Memory is taken where it is written, not where it is asked for."""

import pytest
import torch

from tests.workers.memory import resident_bytes
from workers.zeros import zeros

CPU = torch.device("cpu")
ROWS, ROW = 1 << 10, 1 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_zeros_take_memory_where_they_are_written(dtype: torch.dtype) -> None:
    before = resident_bytes()
    made = zeros((ROWS, ROW // dtype.itemsize), dtype, CPU)
    assert (made.shape, made.dtype, made.device) == ((ROWS, ROW // dtype.itemsize), dtype, CPU)
    made[3] = 1
    assert made[3].all()
    assert not made[2].any()
    assert resident_bytes() - before < ROWS * ROW // 16
    del made
    assert resident_bytes() - before < 64 * ROW


def test_none_are_zeros_too() -> None:
    assert zeros((0, 3), torch.float32, CPU).shape == (0, 3)


def test_what_the_system_refuses_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"cannot have 4194304\.0 GiB.*--memory-fraction"):
        zeros((1 << 52,), torch.bool, CPU)
