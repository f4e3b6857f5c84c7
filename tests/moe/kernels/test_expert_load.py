"""expert_load against bincount."""

from __future__ import annotations

import pytest
import torch

from moe.kernels.expert_load import expert_load

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(
    L: int,
    P: int,
    E: int,
    num_routes: int,
    first: int,
    num_local: int,
    device: str = DEVICE,
    num_last: int | None = None,
) -> None:
    num_last = num_routes if num_last is None else num_last
    ids = torch.randint(-1, E, (L, P), device=device, dtype=torch.int32)
    load = torch.randint(0, 1 << 40, (L, E), device=device)
    hit = torch.full((L,), 77, dtype=torch.int32, device=device)
    expected = load.clone()
    hits = []
    for layer in range(L):
        step = ids[layer, : num_last if layer == L - 1 else num_routes]
        counts = torch.bincount(step[step >= 0], minlength=E)
        expected[layer] += counts
        hits.append(int((counts[first : first + num_local] > 0).sum()))
    expert_load(ids, num_routes, num_last, load, hit, first, num_local)
    assert torch.equal(load, expected)
    assert hit.tolist() == hits


@pytest.mark.parametrize("num_routes", [0, 1, 5, 13, 14])
def test_steps(num_routes: int) -> None:
    check(3, 14, 24, num_routes, 6, 12)


@pytest.mark.parametrize(
    ("E", "first", "num_local"), [(1, 0, 1), (3, 0, 3), (3, 2, 1), (3, 0, 0), (130, 65, 65)]
)
def test_experts(E: int, first: int, num_local: int) -> None:
    check(2, 27, E, 24, first, num_local)


@pytest.mark.parametrize("num_last", [0, 2, 14])
def test_the_last_layer_may_have_others(num_last: int) -> None:
    check(3, 14, 24, 9, 6, 12, num_last=num_last)


def test_several_blocks() -> None:
    check(2, 6400, 16, 6216, 8, 8)


def test_layers_of_a_larger_buffer() -> None:
    """The first routes of each, layers far apart."""
    ids = torch.randint(0, 4, (2, 12), device=DEVICE, dtype=torch.int32)
    load = torch.zeros(2, 4, dtype=torch.int64, device=DEVICE)
    hit = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    expert_load(ids[:, :6], 6, 6, load, hit, 0, 4)
    assert load.sum(1).tolist() == [6, 6]
    assert torch.equal(load[1], torch.bincount(ids[1, :6], minlength=4))


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 256, 8192])
@pytest.mark.parametrize(("first", "num_local"), [(0, 128), (64, 64)])
def test_real_shapes(num_tokens: int, first: int, num_local: int) -> None:
    check(48, 8 * 8192, 128, 8 * num_tokens, first, num_local, "cuda")
