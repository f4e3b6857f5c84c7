"""Columns arrive as they were; on a GPU at addresses that depend on their sizes alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workers.staging import Staging


def columns_of(seed: int, sizes: tuple[int, ...] = (3, 0, 5, 1)) -> dict[str, np.ndarray]:
    """Of each type, odd sizes, none at all, two dimensions, and a view that is not contiguous."""
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(-9, 9, sizes[0]).astype(np.int32),
        "none": np.empty((2, sizes[1]), dtype=np.int64),
        "wide": rng.integers(-(2**62), 2**62, (3, sizes[2])),
        "floats": rng.standard_normal((2, sizes[2]), dtype=np.float32),
        "strided": rng.integers(0, 99, (4, 2 * sizes[3])).astype(np.int32)[:, ::2],
    }


def check(staging: Staging, columns: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    staged = staging.copy(columns)
    assert list(staged) == list(columns)
    for name, column in columns.items():
        assert staged[name].device.type == staging.device.type
        assert staged[name].shape == column.shape
        assert staged[name].dtype == torch.from_numpy(column.copy()).dtype
        assert torch.equal(staged[name].cpu(), torch.from_numpy(column.copy())), name
    return staged


def test_columns_arrive_as_they_were() -> None:
    staging = Staging(torch.device("cpu"), 8)
    for seed in range(6):
        check(staging, columns_of(seed))


def holds(buffer: torch.Tensor, column: torch.Tensor) -> bool:
    begin = column.data_ptr() - buffer.data_ptr()
    return begin >= 0 and begin + column.nbytes <= buffer.nbytes


class Copied:
    """An event of a copy that is done at once."""

    def synchronize(self) -> None: ...

    def record(self) -> None: ...


@pytest.mark.parametrize("kept", [2, 100])
def test_layouts_come_again_and_the_buffer_grows(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU, in the host's memory: views of a layout are kept, the buffer's own."""
    monkeypatch.setattr("workers.staging._KEPT_LAYOUTS", kept)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **how: empty(*size, **how))
    staging = Staging(torch.device("cpu"), 8)
    staging.on_cuda, staging.copied = True, [Copied()] * 9  # type: ignore[list-item]
    staging._allocate(64)
    for seed in range(30):
        sizes = (3, 0, 5, 1) if seed % 3 else (3, 0, 5, seed)
        staged = check(staging, columns_of(seed, sizes))
        assert all(each.numel() == 0 or holds(staging.buffer, each) for each in staged.values())
        assert len(staging._places) <= kept


@pytest.fixture
def on_gpu() -> Staging:
    return Staging(torch.device("cuda"), 4096)


@pytest.mark.gpu
def test_columns_of_the_same_sizes_lie_at_the_same_aligned_addresses(on_gpu: Staging) -> None:
    first = check(on_gpu, columns_of(0))
    for seed in range(1, 10):
        again = check(on_gpu, columns_of(seed))
        for name, column in again.items():
            assert column.data_ptr() == first[name].data_ptr()
            assert column.numel() == 0 or column.data_ptr() % 16 == 0
    # What varies stands last, and moves nothing before it.
    longer = check(on_gpu, columns_of(3, (3, 0, 5, 40)))
    assert all(longer[name].data_ptr() == first[name].data_ptr() for name in first)


@pytest.mark.gpu
def test_steps_in_flight_keep_what_they_were_given(on_gpu: Staging) -> None:
    """The host runs ahead of the device; no buffer is filled again before it was copied."""
    seen = []
    torch.cuda._sleep(100_000_000)
    for seed in range(12):
        columns = columns_of(seed)
        seen.append((columns, {k: v.clone() for k, v in on_gpu.copy(columns).items()}))
    for columns, staged in seen:
        for name, column in columns.items():
            assert torch.equal(staged[name].cpu(), torch.from_numpy(column.copy())), name


@pytest.mark.gpu
def test_it_grows_while_copies_are_on_their_way(on_gpu: Staging) -> None:
    seen = []
    torch.cuda._sleep(100_000_000)
    for size in (10, 5000, 20, 40_000, 30):
        columns = {"ids": np.arange(size, dtype=np.int32)}
        seen.append(on_gpu.copy(columns)["ids"].clone())
    for staged, size in zip(seen, (10, 5000, 20, 40_000, 30), strict=True):
        assert torch.equal(staged.cpu(), torch.arange(size, dtype=torch.int32))


@pytest.mark.gpu
def test_copying_neither_waits_nor_allocates(on_gpu: Staging) -> None:
    on_gpu.copy(columns_of(0))
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for seed in range(9):
            on_gpu.copy(columns_of(seed))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.gpu
def test_what_graphs_read_never_moves(on_gpu: Staging) -> None:
    check(on_gpu, columns_of(0))
    on_gpu.freeze()
    held = on_gpu.buffer.data_ptr()
    with pytest.raises(RuntimeError, match="words"):
        on_gpu.copy({"ids": np.zeros(1 << 20, dtype=np.int32)})
    check(on_gpu, columns_of(1))
    assert on_gpu.buffer.data_ptr() == held
