"""The draw and suppression on the GPU's kernels against workers.sampling.torch_sampler.sample."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import triton
import triton.language as tl

from switchyard.worker.link import NOT_FINITE
from tests.workers.sampling.draws import KINDS, assert_same_tokens, make_logits, make_rows, on
from workers.sampling.kernels.draw import draw, exponential, log
from workers.sampling.kernels.scaled_logits import num_chunks, workspace_size
from workers.sampling.kernels.suppress import suppress
from workers.sampling.torch_sampler import SamplingRows, sample

pytestmark = pytest.mark.interpreter

TEMPERATURES = torch.tensor([1.0, 0.0, 0.7, 1e-5, 30.0, 1.7, 1e30])


@triton.jit
def _exponential_kernel(words_ptr, out_ptr, FAST: tl.constexpr, BLOCK: tl.constexpr):
    numbers = tl.arange(0, BLOCK)
    words = tl.load(words_ptr + numbers).to(tl.uint32)
    drawn = exponential(words, FAST)
    tl.store(out_ptr + numbers, drawn)
    tl.store(out_ptr + BLOCK + numbers, log(drawn, FAST))


def check_exponential(device: str) -> None:
    """The smallest and largest words, both sides of the series' end, and any."""
    quarter, top = 2**30, 2**32 - 1
    ends = [*range(64), *(2**i for i in range(6, 32)), *range(quarter - 64, quarter + 64)]
    ends += [*range(top - 1023, top + 1)]
    any_words = torch.randint(0, 2**32, (2048 - len(ends),), generator=torch.manual_seed(0))
    words = torch.cat([torch.tensor(ends), any_words])
    out = torch.empty(2, 2048, device=device)
    _exponential_kernel[(1,)](words.to(device), out, FAST=device == "cuda", BLOCK=2048)
    uniform = ((words.float() + 0.5) * 2.0**-32).clamp(max=1.0 - 2.0**-24).double()
    expected = -torch.log1p(-uniform)
    drawn, logs = out.cpu().double()
    assert ((drawn - expected).abs() <= 2e-6 * expected).all()
    assert ((logs - expected.log()).abs() <= 2e-6 + 3e-7 * expected.log().abs()).all()


def oracle(logits_DV: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    return sample(logits_DV.float().clone(), dataclasses.replace(rows, any_filter=False))


def check_draw(
    device: str, logits_DV: torch.Tensor, rows: SamplingRows, max_ties: int = 0
) -> torch.Tensor:
    """The drawn tokens, after comparison."""
    logits_DV, rows = logits_DV.to(device), on(device, rows)
    tokens_D = draw(logits_DV, rows)
    assert_same_tokens(logits_DV, rows, tokens_D, oracle(logits_DV, rows), max_ties)
    return tokens_D


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_rows", "vocab"), [(1, 5), (3, 97), (7, 1000), (9, 5000)])
def test_tokens_are_the_samplers(num_rows: int, vocab: int, kind: str, dtype: torch.dtype) -> None:
    logits = make_logits(kind, num_rows, vocab, seed=vocab + num_rows).to(dtype)
    rows = make_rows(num_rows, seed=vocab, temperature=TEMPERATURES.repeat(2)[:num_rows])
    check_draw("cpu", logits, rows)


def test_exponentials_are_exact_to_fp32() -> None:
    check_exponential("cpu")


def test_every_word_of_a_philox_call_is_used() -> None:
    tokens = check_draw("cpu", torch.zeros(32, 6), make_rows(32, seed=1))
    assert tokens.unique().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 2999])
def test_rows_that_are_not_finite_are_told(bad: float, place: int) -> None:
    logits = make_logits("normal", 4, 3000, seed=2)
    logits[1, place] = logits[2, place] = bad
    tokens = check_draw("cpu", logits, make_rows(4, seed=3, temperature=[1.0, 1.0, 0.0, 0.0]))
    assert (tokens == NOT_FINITE).tolist() == [False, True, True, False]


def test_buffers_slots_and_strides() -> None:
    """As a captured step calls it: padding rows, given buffers full of anything, narrow ints."""
    wide = make_logits("normal", 5, 130, seed=4)
    logits, rows = wide[:, :123], make_rows(5, seed=5)
    narrow = dataclasses.replace(
        rows, position_D=rows.position_D.int(), sample_index_D=rows.sample_index_D.int()
    )
    slots = torch.tensor([4, -1, 0, 2, -1], dtype=torch.int32)
    last = torch.full((6,), 99, dtype=torch.int32)
    logits[3, 7] = float("nan")
    out = torch.full((5,), 77, dtype=torch.int32)
    workspace = torch.full((workspace_size(64, 123),), 2**62)
    drawn = draw(
        logits, narrow, slots_D=slots, last_token_S=last, workspace=workspace, out_D=out
    ).tolist()
    expected = oracle(logits, rows).tolist()
    assert drawn == [expected[0], 0, expected[2], NOT_FINITE, 0]
    assert last.tolist() == [drawn[2], 99, 0, 99, drawn[0], 99]


@pytest.mark.parametrize("rows_and_vocab", [(1, 5), (8, 2000), (64, 2000), (300, 5000)])
def test_the_workspace_holds_any_smaller_number_of_rows(rows_and_vocab: tuple[int, int]) -> None:
    most, vocab = rows_and_vocab
    size = workspace_size(most, vocab)
    assert all(
        size >= num * num_chunks(num, vocab, dtype)
        for num in range(1, most + 1)
        for dtype in (torch.bfloat16, torch.float32)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e6])
def test_suppression_is_the_samplers(temperature: float, dtype: torch.dtype) -> None:
    """Repeated pairs, padding, a whole row, and logits that were not finite before."""
    logits = make_logits("normal", 6, 50, seed=6).to(dtype)
    logits[2, 3] = float("-inf")  # itself suppressed
    logits[3, 4] = float("-inf")  # beside a suppressed one
    best = logits.float().nan_to_num().argmax(-1)
    pairs = [(0, int(best[0])), (0, int(best[0])), (0, 1), (2, 3), (3, 5)]
    pairs += [(4, token) for token in range(50)]
    pair_rows, pair_ids = (torch.tensor(column) for column in zip(*pairs, strict=True))
    rows = make_rows(6, seed=7, temperature=temperature)
    expected = oracle(logits, dataclasses.replace(rows, suppressed=(pair_rows, pair_ids)))
    spoilt = torch.zeros(6, dtype=torch.int32)
    padding = torch.full((3,), -1)
    suppress(logits, torch.cat([pair_rows, padding]), torch.cat([pair_ids, padding]), spoilt)
    tokens = draw(logits, rows, spoilt_D=spoilt)
    assert tokens.tolist() == expected.tolist()
    assert tokens[[2, 3]].tolist() == [NOT_FINITE] * 2
    assert tokens[4] == 0
    assert not spoilt.any()


def test_more_pairs_than_a_block() -> None:
    logits = make_logits("normal", 3, 1500, seed=8)
    pair_rows, pair_ids = torch.full((1400,), 1), torch.arange(1400)
    expected = logits.clone()
    expected[1, :1400] = torch.finfo(torch.float32).min
    suppress(logits, pair_rows, pair_ids, torch.zeros(3, dtype=torch.int32))
    assert torch.equal(logits, expected)


@pytest.mark.gpu
def test_exponentials_of_the_gpu_are_exact_to_fp32() -> None:
    check_exponential("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 8, 9, 256])
def test_tokens_on_the_gpu(num_rows: int, dtype: torch.dtype) -> None:
    """One draw in 200,000 or so may fall to the other of two scores that rounding cannot part."""
    for seed in range(20):
        kind = KINDS[seed % len(KINDS)]
        logits = make_logits(kind, num_rows, 151936, seed).to(dtype)
        temperature = TEMPERATURES.repeat(37)[:num_rows]
        check_draw("cuda", logits, make_rows(num_rows, seed, temperature=temperature), max_ties=2)
