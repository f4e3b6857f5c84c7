"""expert_load against bincount."""

from __future__ import annotations

import pytest
import torch

from moe.kernels.expert_load import expert_load

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(
    L: int, T: int, K: int, E: int, num_tokens: int, first: int, num_local: int,
    device: str, *, on_device: bool = True,
) -> None:  # fmt: skip
    ids = torch.randint(-1, E, (L, T, K), device=device, dtype=torch.int32)
    load = torch.randint(0, 1 << 40, (L, E), device=device)
    hit = torch.full((L,), 77, dtype=torch.int32, device=device)
    count = torch.tensor([num_tokens], dtype=torch.int32, device=device)
    expected = load.clone()
    hits = []
    for layer in range(L):
        step = ids[layer, :num_tokens].flatten()
        counts = torch.bincount(step[step >= 0], minlength=E)
        expected[layer] += counts
        hits.append(int((counts[first : first + num_local] > 0).sum()))
    expert_load(ids, count if on_device else num_tokens, load, hit, first, num_local)
    assert torch.equal(load, expected)
    assert hit.tolist() == hits


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1, 5, 7])
def test_steps(num_tokens: int, on_device: bool) -> None:
    check(3, 7, 2, 24, num_tokens, 6, 12, DEVICE, on_device=on_device)


@pytest.mark.parametrize(
    ("E", "first", "num_local"), [(1, 0, 1), (3, 0, 3), (3, 2, 1), (3, 0, 0), (130, 65, 65)]
)
def test_experts(E: int, first: int, num_local: int) -> None:
    check(2, 9, 3, E, 8, first, num_local, DEVICE)


def test_several_blocks() -> None:
    check(2, 800, 8, 16, 777, 8, 8, DEVICE)


def test_layers_of_a_larger_buffer() -> None:
    """Rows of one token slice, layers far apart."""
    ids = torch.randint(0, 4, (2, 6, 2), device=DEVICE, dtype=torch.int32)
    load = torch.zeros(2, 4, dtype=torch.int64, device=DEVICE)
    hit = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    expert_load(ids[:, :3], 3, load, hit, 0, 4)
    assert load.sum(1).tolist() == [6, 6]
    assert torch.equal(load[1], torch.bincount(ids[1, :3].flatten(), minlength=4))


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 256, 8192])
@pytest.mark.parametrize(("first", "num_local"), [(0, 128), (64, 64)])
def test_real_shapes(num_tokens: int, first: int, num_local: int) -> None:
    check(48, 8192, 8, 128, num_tokens, first, num_local, "cuda")
