"""Dispatchers on real gloo ranks: the same answer as the oracle, whatever the layout."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from moe.base.parallel import BACKENDS
from moe.config import MoEConfig
from moe.dispatch import DISPATCHERS
from moe.dispatch.shares import take_share
from moe.groups import ExpertGroups
from tests.moe.builders import make_layer
from tests.moe.configs import AG_RS, DEEPSEEK, QWEN3, QWEN3_NEXT, H, K, make_config
from tests.moe.ranks import Case, RankPool, check

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    ranks = RankPool(tmp_path_factory.mktemp("ranks"))
    ranks.start()
    yield ranks
    ranks.stop()


# tp, dp, tokens of each replica
LAYOUTS = [
    (2, 1, (5,)),
    (2, 1, (1,)),
    (4, 1, (9,)),
    (4, 1, (1,)),
    (1, 2, (3, 6)),
    (1, 2, (0, 4)),
    (1, 4, (2, 0, 7, 1)),
    (2, 2, (5, 2)),
    (2, 2, (0, 3)),
    (2, 2, (1, 1)),
]


def layouts() -> Iterator[tuple[int, int, tuple[int, ...], str]]:
    """Each layout with each backend that the truth table allows it."""
    for tp, dp, counts in LAYOUTS:
        for backend in ("disabled", "local_allreduce", AG_RS, "all_to_all"):
            if backend != "local_allreduce" or dp == 1:
                yield tp, dp, counts, backend


@pytest.mark.parametrize(("tp", "dp", "counts", "backend"), list(layouts()))
def test_layouts(pool: RankPool, tp: int, dp: int, counts: tuple[int, ...], backend: str) -> None:
    for config in (QWEN3, QWEN3_NEXT, DEEPSEEK):
        check(pool, Case(tp=tp, dp=dp, backend=backend, counts=counts, config=config))


@pytest.mark.parametrize("backend", [AG_RS, "all_to_all"])
@pytest.mark.parametrize(("tp", "dp"), [(4, 1), (2, 2), (1, 4)])
def test_all_tokens_to_the_same_experts(pool: RankPool, tp: int, dp: int, backend: str) -> None:
    case = Case(tp=tp, dp=dp, backend=backend, counts=(6,) * dp, config=QWEN3, skew=True)
    answers = check(pool, case)
    # Experts 0, 1 are rank 0's and 2 is rank 1's.
    routes = 6 * dp
    assert [answer["num_routes"] for answer in answers] == [2 * routes, routes, 0, 0]


@pytest.mark.parametrize("backend", ["local_allreduce", AG_RS, "all_to_all"])
def test_more_ranks_than_experts(pool: RankPool, backend: str) -> None:
    config = make_config(3, num_experts_per_tok=2)
    check(pool, Case(tp=4, dp=1, backend=backend, counts=(5,), config=config))


@pytest.mark.parametrize("backend", ["disabled", "local_allreduce", AG_RS, "all_to_all"])
def test_bfloat16(pool: RankPool, backend: str) -> None:
    """A router that fp32 and bf16 agree on: the bias decides."""
    config = make_config(8, router="noaux_tc", n_group=1, topk_group=1)
    case = Case(
        tp=4, dp=1, backend=backend, counts=(6,), config=config, skew=True, dtype=torch.bfloat16
    )
    check(pool, case)


@pytest.mark.parametrize("backend", ["local_allreduce", AG_RS, "all_to_all"])
def test_legacy_runner(pool: RankPool, backend: str) -> None:
    case = Case(tp=2, dp=1, backend=backend, counts=(5,), config=QWEN3_NEXT, runner="legacy")
    check(pool, case)


@pytest.mark.parametrize(
    ("tp", "dp", "backend"),
    [(4, 1, "local_allreduce")]
    + [(tp, 4 // tp, backend) for tp in (4, 2, 1) for backend in (AG_RS, "all_to_all")],
)
def test_no_route_is_computed_twice(pool: RankPool, tp: int, dp: int, backend: str) -> None:
    counts = (12, 5, 0, 7)[:dp]
    answers = check(pool, Case(tp=tp, dp=dp, backend=backend, counts=counts, config=QWEN3))
    assert sum(answer["num_routes"] for answer in answers) == sum(counts) * K


@pytest.mark.parametrize("backend", ["disabled", "local_allreduce", AG_RS, "all_to_all"])
@pytest.mark.parametrize("padding", [1, 7])
def test_padding_goes_nowhere(pool: RankPool, backend: str, padding: int) -> None:
    """All of a share may be padding."""
    case = Case(tp=4, dp=1, backend=backend, counts=(9,), config=QWEN3, padding=padding)
    answers = check(pool, case)
    sliced = 4 if backend == "disabled" else 1
    assert sum(answer["num_routes"] for answer in answers) == (9 - padding) * K * sliced


def test_an_exact_case_leaves_a_gemm_nothing_to_round() -> None:
    """Else libraries that add in another order for another shape would fail the test below."""
    case = Case(tp=1, dp=1, backend="auto", counts=(33,), config=QWEN3, exact=True)
    hidden = case.hidden(0)
    for name, weight in case.weights().items():
        if "down" in name:
            assert ((weight != 0).sum(dim=1) == 1).all(), name
        else:
            products = hidden.double() @ weight.double().t()
            assert torch.equal((hidden @ weight.t()).double(), products), name


@pytest.mark.parametrize("config", [QWEN3, QWEN3_NEXT], ids=["routed", "shared"])
@pytest.mark.parametrize(
    ("tp", "dp", "counts"), [(2, 1, (33,)), (4, 1, (21,)), (1, 4, (9, 0, 1, 17)), (2, 2, (5, 8))]
)
def test_all_to_all_has_the_bits_of_one_rank(
    pool: RankPool, tp: int, dp: int, counts: tuple[int, ...], config: MoEConfig
) -> None:
    case = Case(tp=tp, dp=dp, backend="all_to_all", counts=counts, config=config, exact=True)
    answers = check(pool, case)
    layer = make_layer(config, case.weights())
    for rank, answer in enumerate(answers):
        hidden = case.hidden(rank // tp)
        alone = layer(hidden, len(hidden)).total(hidden.dtype)
        if config.shared_expert_size:
            # A shared expert's GEMM may round otherwise for a share than for all tokens.
            torch.testing.assert_close(answer["out"], alone, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(answer["out"], alone)


def test_every_backend_has_a_dispatcher() -> None:
    """Except the name that is reserved, which `resolve_parallel` refuses."""
    assert {*DISPATCHERS} == {*BACKENDS} - {"deepep"}


def test_more_tokens_than_max_tokens() -> None:
    with pytest.raises(ValueError, match=r"4 tokens.*max_tokens=3"):
        take_share(torch.zeros(4, H), 3, ExpertGroups())
