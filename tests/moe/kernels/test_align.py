"""align against a stable sort."""

from __future__ import annotations

import pytest
import torch

from moe.kernels import align as module
from moe.kernels.align import Alignment, align, allocate_alignment, max_tiles, scratch_size

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_map(num_experts: int, first: int, num_local: int, device: str) -> torch.Tensor:
    index = torch.full((num_experts,), -1, dtype=torch.int32)
    index[first : first + num_local] = torch.arange(num_local, dtype=torch.int32)
    return index.to(device)


def check(ids_P: torch.Tensor, expert_map: torch.Tensor | None, num_local: int, block: int) -> None:
    # Whatever the tables held before: a graph replays into the same memory.
    out = allocate_alignment(ids_P.numel(), num_local, block, ids_P.device)
    scratch = ids_P.new_empty(scratch_size(ids_P.numel(), num_local))
    for table in (*out, scratch):
        table.fill_(12345)
    assert align(ids_P, expert_map, num_local, block, out=out, scratch=scratch) is out
    check_tables(out, local_of(ids_P, expert_map), num_local, block)


def local_of(ids_P: torch.Tensor, expert_map: torch.Tensor | None) -> torch.Tensor:
    if expert_map is None:
        return ids_P.flatten().cpu()
    mapped = expert_map[ids_P.flatten().clamp(min=0).long()]
    return torch.where(ids_P.flatten() < 0, -1, mapped).cpu()


def check_tables(out: Alignment, local_P: torch.Tensor, num_local: int, block: int) -> None:
    order, offsets, tile_expert, tile_start = (table.cpu() for table in out)
    counts = torch.bincount(local_P[local_P >= 0], minlength=num_local)
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    sorted_P = local_P.argsort(stable=True)[(local_P < 0).sum() :].int()
    assert torch.equal(offsets, starts.int())
    assert torch.equal(order[: offsets[-1]], sorted_P)
    tiles = [
        (expert, start)
        for expert in range(num_local)
        for start in range(int(starts[expert]), int(starts[expert + 1]), block)
    ]
    used = tile_expert >= 0
    found = list(zip(tile_expert[used].tolist(), tile_start[used].tolist(), strict=True))
    assert found == tiles
    assert (tile_expert[len(tiles) :] == -1).all()


def make_ids(num_routes: int, num_experts: int, device: str, padding: float = 0.2) -> torch.Tensor:
    ids = torch.randint(0, num_experts, (num_routes,), device=device)
    return ids.masked_fill(torch.rand(num_routes, device=device) < padding, -1).int()


@pytest.mark.parametrize("num_routes", [0, 1, 8, 127, 129, 600])
@pytest.mark.parametrize("num_experts", [1, 3, 24])
@pytest.mark.parametrize("block", [16, 64])
def test_all_local(num_routes: int, num_experts: int, block: int) -> None:
    check(make_ids(num_routes, num_experts, DEVICE), None, num_experts, block)


@pytest.mark.parametrize("num_routes", [5, 200])
@pytest.mark.parametrize(("first", "num_local"), [(0, 7), (5, 4), (19, 1)])
def test_foreign_routes(num_routes: int, first: int, num_local: int) -> None:
    ids = make_ids(num_routes, 20, DEVICE)
    check(ids, make_map(20, first, num_local, DEVICE), num_local, 16)


def test_no_local_route() -> None:
    ids = torch.full((6,), 3, dtype=torch.int32, device=DEVICE)
    check(ids, make_map(8, 0, 3, DEVICE), 3, 16)
    check(torch.full_like(ids, -1), None, 8, 16)


@pytest.mark.parametrize("num_routes", [16, 17, 2048])
def test_one_expert_takes_all(num_routes: int) -> None:
    check(torch.full((num_routes,), 2, dtype=torch.int32, device=DEVICE), None, 3, 16)


@pytest.mark.parametrize("num_routes", [2048, 2049])
def test_many_routes(num_routes: int) -> None:
    check(make_ids(num_routes, 5, DEVICE).view(-1, 1), None, 5, 64)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks of few routes: the interpreter takes a second for one of many."""
    monkeypatch.setattr(module, "_FEW_ROUTES", 0)
    monkeypatch.setattr(module, "_BLOCK", 16)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("num_routes", [1, 16, 17, 300])
@pytest.mark.parametrize(("num_experts", "first", "num_local"), [(1, 0, 1), (7, 2, 1), (40, 7, 33)])
@pytest.mark.parametrize("block", [1, 64])
def test_many_blocks(
    num_routes: int, num_experts: int, first: int, num_local: int, block: int
) -> None:
    ids = make_ids(num_routes, num_experts, DEVICE)
    check(ids, make_map(num_experts, first, num_local, DEVICE), num_local, block)


@pytest.mark.usefixtures("small_blocks")
def test_more_counts_than_are_read_at_once() -> None:
    check(make_ids(600, 500, DEVICE), None, 500, 16)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("expert", [0, 2, 3, -1])
def test_many_blocks_of_one_expert(expert: int) -> None:
    ids = torch.full((100,), expert, dtype=torch.int32, device=DEVICE)
    check(ids, make_map(4, 0, 3, DEVICE), 3, 16)


def check_longer_table(num_routes: int) -> None:
    out = allocate_alignment(num_routes, 3, 16, DEVICE)
    wide = (torch.full((len(out.tile_expert) + 200,), 7, dtype=torch.int32) for _ in range(2))
    out = Alignment(*out[:2], *(table.to(DEVICE) for table in wide))
    ids = make_ids(num_routes, 3, DEVICE)
    check_tables(align(ids, None, 3, 16, out=out), local_of(ids, None), 3, 16)


def test_a_longer_table_ends_in_no_tiles() -> None:
    check_longer_table(40)


@pytest.mark.usefixtures("small_blocks")
def test_a_longer_table_of_many_blocks_ends_in_no_tiles() -> None:
    check_longer_table(65)


@pytest.mark.parametrize("num_routes", [1, 9, 500, 2048, 2049, 70000])
@pytest.mark.parametrize("num_local", [1, 7, 128])
@pytest.mark.parametrize("block", [1, 16, 128])
def test_max_tiles_is_enough(num_routes: int, num_local: int, block: int) -> None:
    """Worst case: one route each, what is left over all with one expert."""
    hit = min(num_routes, num_local)
    worst = hit - 1 + -(-(num_routes - hit + 1) // block)
    assert max_tiles(num_routes, num_local, block) == worst


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 8, 32, 256, 257, 1024, 8192, 20000])
@pytest.mark.parametrize(("num_experts", "num_local"), [(128, 128), (128, 64), (512, 512)])
def test_real_shapes(num_tokens: int, num_experts: int, num_local: int) -> None:
    ids = torch.rand(num_tokens, num_experts, device="cuda").argsort(dim=1)[:, :8].int()
    ids[num_tokens - num_tokens // 8 :] = -1
    expert_map = None
    if num_local < num_experts:
        expert_map = make_map(num_experts, num_local, num_local, "cuda")
    for block in (16, 64, 128):
        check(ids.contiguous(), expert_map, num_local, block)
