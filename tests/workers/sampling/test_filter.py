"""What the filter kernels keep against the plain sampler, and the draws that follow."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from tests.workers.sampling.draws import (
    KINDS,
    MASS_TIE,
    assert_same_tokens,
    make_logits,
    make_rows,
    mass_before,
    on,
    scaled,
)
from workers.sampling.kernels.draw import Kept, draw
from workers.sampling.kernels.filter_logits import FilterWorkspace, filter_logits
from workers.sampling.kernels.scaled_logits import workspace_size
from workers.sampling.kernels.suppress import suppress
from workers.sampling.torch_sampler import SamplingRows, _filter, sample

pytestmark = pytest.mark.interpreter

MIN_P, TOP_K, TOP_P = (0.0, 0.02, 1.0), (0, 1, 6, 300), (1.0, 0.9, 0.3, 1e-6)
COMBINATIONS = list(itertools.product(MIN_P, TOP_K, TOP_P))
TEMPERATURES = (1.0, 0.7, 1.6)


def garbage(num_rows: int, vocab: int, candidates: int, device: str = "cpu") -> FilterWorkspace:
    """A workspace with traces of an earlier step."""
    workspace = FilterWorkspace.allocate(num_rows, vocab, device, candidates)
    for field in dataclasses.fields(workspace):
        getattr(workspace, field.name).fill_(1_000_000)
    return workspace


def kept_mask(logits_DV: torch.Tensor, rows: SamplingRows, kept: Kept) -> torch.Tensor:
    scaled_DV = logits_DV.float() / rows.temperature_D[:, None]
    ids_V = torch.arange(logits_DV.shape[1], device=logits_DV.device)
    threshold_D1 = kept.threshold_D[:, None]
    tied_DV = (scaled_DV == threshold_D1) & (ids_V <= kept.last_id_D[:, None])
    return (scaled_DV > threshold_D1) | tied_DV


def check_filter(
    device: str,
    logits_DV: torch.Tensor,
    rows: SamplingRows,
    candidates: int = 16384,
    max_ties: int = 0,
) -> None:
    """The same tokens kept but for ``max_ties`` rows at the edge of top_p, and the same drawn."""
    logits_DV, rows = logits_DV.to(device), on(device, rows)
    workspace = garbage(*logits_DV.shape, candidates, device)
    kept = filter_logits(logits_DV, rows, workspace=workspace)
    ours_DV = kept_mask(logits_DV, rows, kept)
    theirs_DV = _filter(logits_DV.float() / rows.temperature_D[:, None], rows) > float("-inf")
    different_DV = ours_DV != theirs_DV
    uneven = different_DV.any(-1).nonzero().flatten().tolist()
    for row in uneven:
        before_V = mass_before(scaled(logits_DV[row], rows, row), rows, row)
        edge_V = (before_V - float(rows.top_p_D[row])).abs() < MASS_TIE
        assert bool(edge_V[different_DV[row]].all()), row
    assert len(uneven) <= max_ties, uneven
    drawn_D = draw(logits_DV, rows, kept=kept)
    assert_same_tokens(logits_DV, rows, drawn_D, sample(logits_DV.float(), rows), max_ties)


def combined_rows(num_rows: int, first: int) -> SamplingRows:
    """Rows that go through the combinations from number ``first`` on."""
    each = [COMBINATIONS[(first + i) % len(COMBINATIONS)] for i in range(num_rows)]
    min_p, top_k, top_p = zip(*each, strict=True)
    temperature = [TEMPERATURES[(first + i) % len(TEMPERATURES)] for i in range(num_rows)]
    return make_rows(
        num_rows, first, min_p=min_p, top_k=top_k, top_p=top_p, temperature=temperature
    )


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (8 * i, KINDS[(i + step) % len(KINDS)])
        for i in range(len(COMBINATIONS) // 8)
        for step in (0, 3)
    ],
)
def test_all_combinations(first: int, kind: str) -> None:
    """A vocabulary that top_k 300 does not reach, and candidates that find room or not."""
    rows = combined_rows(8, first)
    logits = make_logits(kind, 8, 97, seed=first)
    check_filter("cpu", logits, rows, candidates=16 if first % 16 else 1024, max_ties=1)


@pytest.mark.parametrize(
    ("num_rows", "vocab", "candidates", "kinds"),
    [
        (1, 5, 4, ("normal", "few_values", "same_chunk")),
        (3, 1000, 4096, ("normal", "few_values", "same_chunk")),
        (5, 4200, 4096, ("normal", "few_values")),
        (2, 9000, 64, ("normal", "few_values", "same_chunk")),
        (9, 4097, 512, ("few_values", "same_chunk")),
    ],
)
def test_sizes(num_rows: int, vocab: int, candidates: int, kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        check_size(num_rows, vocab, candidates, kind)


def check_size(num_rows: int, vocab: int, candidates: int, kind: str) -> None:
    dtype = torch.float16 if kind == "few_values" else torch.float32
    logits = make_logits(kind, num_rows, vocab, seed=vocab).to(dtype)
    rows = combined_rows(num_rows, first=vocab % 29 + num_rows)
    check_filter("cpu", logits, rows, candidates, max_ties=1)


def test_ties_are_kept_in_order_of_their_ids() -> None:
    """top_k and top_p each end within a run of equals; with both, the stricter counts."""
    logits = torch.full((4, 3000), -2.0)
    logits[:, [5, 700, 1500, 2999]] = 3.0
    logits[:, 40] = 4.0
    rows = make_rows(4, seed=1, top_k=[3, 0, 4, 4], top_p=[1.0, 0.02, 0.999, 0.4])
    kept = filter_logits(logits, rows)
    assert kept.threshold_D.tolist() == [3.0, 4.0, 3.0, 4.0]
    assert kept.last_id_D.tolist() == [700, 40, 1500, 40]
    flat = filter_logits(torch.zeros(2, 3000), make_rows(2, seed=1, top_k=[0, 2000], top_p=0.5))
    assert flat.last_id_D.tolist() == [1499, 999]


def test_rows_without_filters_keep_all() -> None:
    rows = make_rows(3, seed=2, temperature=[0.0, 1.0, 0.0], top_k=[4, 0, 0], min_p=[0, 0, 0.5])
    kept = filter_logits(make_logits("normal", 3, 300, seed=1), rows)
    assert kept.threshold_D.tolist() == [float("-inf")] * 3
    assert (kept.last_id_D >= 299).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of NaN
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite_disturb_no_other(bad: float) -> None:
    logits = make_logits("normal", 6, 2500, seed=3)
    logits[[1, 3, 5], 1234] = bad
    logits[5] = bad
    rows = make_rows(6, seed=4, top_k=[0, 0, 9, 9, 9, 9], top_p=[0.9, 0.9, 1.0, 1.0, 0.5, 0.5])
    kept = filter_logits(logits, rows, workspace=garbage(6, 2500, 128))
    tokens = draw(logits, rows, kept=kept)
    assert_same_tokens(logits, rows, tokens, sample(logits.clone(), rows))
    assert (tokens[[1, 3, 5]] == -1).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_suppressed_tokens_are_the_last(dtype: torch.dtype) -> None:
    """The best, all but two, and all: top_k then counts what is left, in the oracle too."""
    logits = make_logits("normal", 4, 60, seed=5).to(dtype)
    pairs = [
        (0, int(logits[0].argmax())),
        *((1, i) for i in range(58)),
        *((2, i) for i in range(60)),
    ]
    pair_rows, pair_ids = (torch.tensor(column) for column in zip(*pairs, strict=True))
    rows = make_rows(4, seed=6, top_k=5, top_p=0.8, min_p=0.001, temperature=[1.0, 9.0, 1.0, 2.0])
    expected = sample(
        logits.float().clone(), dataclasses.replace(rows, suppressed=(pair_rows, pair_ids))
    )
    spoilt = torch.zeros(4, dtype=torch.int32)
    suppress(logits, pair_rows, pair_ids, spoilt)
    tokens = draw(logits, rows, kept=filter_logits(logits, rows), spoilt_D=spoilt)
    assert tokens.tolist() == expected.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 8, 9, 256])
def test_filters_on_the_gpu(num_rows: int, dtype: torch.dtype) -> None:
    """Real shapes; where 150,000 tokens are alike, the order of summation picks the last."""
    for seed in range(20):
        logits = make_logits(KINDS[seed % len(KINDS)], num_rows, 151936, seed).to(dtype)
        rows = combined_rows(num_rows, first=seed * 7)
        check_filter("cuda", logits, rows, max_ties=2 + num_rows // 8)


@pytest.mark.gpu
def test_a_captured_step_draws_what_an_eager_one_does() -> None:
    """Suppression, filters and draw with dependent launches, replayed on other logits."""
    given = make_logits("normal", 9, 151936, 1).bfloat16().cuda()
    rows = on("cuda", combined_rows(9, first=5))
    pair_rows, pair_ids = torch.arange(9).cuda(), given.argmax(-1)
    logits, spoilt = given.clone(), torch.zeros(9, dtype=torch.int32, device="cuda")
    workspace = FilterWorkspace.allocate(9, 151936, "cuda")
    kept = Kept(threshold_D=torch.empty(9).cuda(), last_id_D=torch.empty_like(spoilt))
    keys = torch.empty(workspace_size(9, 151936), dtype=torch.int64, device="cuda")
    out = torch.empty(9, dtype=torch.int64, device="cuda")

    def step(pdl: bool) -> None:
        suppress(logits, pair_rows, pair_ids, spoilt, pdl=pdl)
        filter_logits(logits, rows, workspace=workspace, out=kept, pdl=pdl)
        draw(logits, rows, kept=kept, spoilt_D=spoilt, workspace=keys, out_D=out, pdl=pdl)

    step(pdl=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(pdl=True)
    for shift in (0, 1, 1000):
        shifted = given.roll(shift, dims=1)
        shifted[3, 0] = float("nan") if shift else 0.0
        logits.copy_(shifted)
        graph.replay()
        captured = out.clone()
        logits.copy_(shifted)
        step(pdl=False)
        assert torch.equal(captured, out)
        assert (int(out[3]) == -1) == bool(shift)
