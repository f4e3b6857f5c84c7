"""Buffers grow until they are frozen; afterwards they keep their addresses."""

from __future__ import annotations

import pytest
import torch

from moe.base.workspace import Workspace


def test_a_name_keeps_its_memory_whatever_the_shape_and_type() -> None:
    workspace = Workspace("cpu")
    first = workspace.take("a", (3, 5), torch.float32)
    again = workspace.take("a", (2, 3), torch.int64)
    assert (first.shape, first.dtype, first.is_contiguous()) == ((3, 5), torch.float32, True)
    assert (again.shape, again.dtype, again.is_contiguous()) == ((2, 3), torch.int64, True)
    assert first.data_ptr() == again.data_ptr()
    assert workspace.num_bytes == 60


def test_names_do_not_share_memory() -> None:
    workspace = Workspace("cpu")
    one, other = (workspace.take(name, (7,), torch.int16) for name in ("a", "b"))
    one.fill_(1)
    other.fill_(2)
    assert one.eq(1).all()
    assert other.eq(2).all()


def test_a_buffer_grows_to_the_largest_that_was_asked_for() -> None:
    workspace = Workspace("cpu")
    for size, held in ((4, 4), (9, 9), (2, 9), (9, 9)):
        workspace.take("a", (size,), torch.uint8)
        assert workspace.num_bytes == held


@pytest.mark.parametrize("shape", [(1,), (3,), (0, 8), (5, 7)])
def test_buffers_are_aligned_for_16_byte_loads(shape: tuple[int, ...]) -> None:
    workspace = Workspace("cpu")
    for name, dtype in (("a", torch.bfloat16), ("b", torch.float32), ("c", torch.int64)):
        assert workspace.take(name, shape, dtype).data_ptr() % 16 == 0


def test_frozen_it_serves_what_fits_and_names_what_does_not() -> None:
    workspace = Workspace("cpu")
    held = workspace.take("a", (8,), torch.float32)
    workspace.freeze()
    assert workspace.take("a", (4,), torch.float64).data_ptr() == held.data_ptr()
    with pytest.raises(RuntimeError, match="'a' holds 32 bytes, 36 are asked for"):
        workspace.take("a", (9,), torch.float32)
    with pytest.raises(RuntimeError, match="'b' holds 0 bytes, 4 are asked for"):
        workspace.take("b", (1,), torch.float32)
    assert workspace.num_bytes == 32
