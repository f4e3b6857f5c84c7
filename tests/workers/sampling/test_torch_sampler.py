"""The sampler against its definition: known words, filters, and the distribution it draws from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from switchyard.worker.link import NOT_FINITE
from tests.workers.sampling.draws import reference_support
from workers.sampling.philox import philox4x32, vocabulary_words
from workers.sampling.torch_sampler import SamplingRows, sample

# Known answers of the authors' Random123 library (kat_vectors, philox4x32 10).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def rows_of(num: int, **params: object) -> SamplingRows:
    """``num`` rows with the same parameters, but each its own position."""
    values = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "seed": 0, **params}
    return SamplingRows(
        temperature_D=torch.full((num,), values["temperature"]),
        top_p_D=torch.full((num,), values["top_p"]),
        min_p_D=torch.full((num,), values["min_p"]),
        top_k_D=torch.full((num,), values["top_k"], dtype=torch.int64),
        seed_D=torch.full((num,), values["seed"], dtype=torch.int64),
        sample_index_D=torch.zeros(num, dtype=torch.int64),
        position_D=torch.arange(num),
        suppressed=values.get("suppressed"),  # type: ignore[arg-type]
        any_random=values["temperature"] > 0,  # type: ignore[operator]
        any_filter=True,
    )


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    drawn = philox4x32(
        tuple(torch.tensor(c) for c in counter),  # type: ignore[arg-type]
        tuple(torch.tensor(k) for k in key),  # type: ignore[arg-type]
    )
    assert tuple(int(word) for word in drawn) == words


def test_words_depend_on_seed_sample_position_and_id_alone() -> None:
    seeds = torch.tensor([5, 5, -3, 5])
    samples, positions = torch.tensor([0, 0, 0, 1]), torch.tensor([7, 8, 7, 7])
    together = vocabulary_words(seeds, samples, positions, 11)
    alone = vocabulary_words(seeds[2:3], samples[2:3], positions[2:3], 30)
    assert torch.equal(together[2], alone[0, :11])
    assert len({tuple(row.tolist()) for row in together}) == 4


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    draws = 40_000
    tokens = sample(logits.repeat(draws, 1), rows_of(draws, temperature=0.7, seed=11))
    expected = (logits / 0.7).softmax(-1)
    seen = torch.bincount(tokens, minlength=5) / draws
    # Five standard deviations of a binomial share.
    bound = 5 * (expected * (1 - expected) / draws).sqrt()
    assert ((seen - expected).abs() < bound).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocab=st.integers(1, 40),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
def test_filters_keep_what_they_mean(
    seed: int, vocab: int, min_p: float, top_k: int, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocab, generator=generator) * 3
    rows = rows_of(300, min_p=min_p, top_k=top_k, top_p=top_p, seed=seed % 2**31)
    drawn = set(sample(logits.repeat(300, 1), rows).tolist())
    support = reference_support(logits, min_p, top_k, top_p)
    assert drawn <= support
    assert int(logits.argmax()) in support


def test_the_only_candidate_wins_whatever_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the largest word, which fp32 rounds up to 1."""
    largest = torch.full((1, 4), 2**32 - 1)
    monkeypatch.setattr("workers.sampling.torch_sampler.vocabulary_words", lambda *_: largest)
    assert sample(torch.tensor([[0.0, 1.0, 3.0, 2.0]]), rows_of(1, top_k=1)).tolist() == [2]


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    logits = torch.randn(64, 50, generator=torch.manual_seed(1))
    rows = rows_of(64, temperature=0.8, top_p=0.9, top_k=20, seed=3)
    together = sample(logits.clone(), rows)
    for row in (0, 17, 63):
        alone = SamplingRows(
            **{
                name: getattr(rows, name)[row : row + 1]
                for name in rows.__dataclass_fields__
                if name.endswith("_D")
            },
            suppressed=None,
            any_random=True,
            any_filter=True,
        )
        assert sample(logits[row : row + 1].clone(), alone) == together[row]


def test_greedy_takes_the_lowest_of_equal_ids_and_skips_suppressed() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 0.0], [1.0, 5.0, 5.0, 0.0]])
    suppressed = (torch.tensor([1]), torch.tensor([1]))
    tokens = sample(logits, rows_of(2, temperature=0.0, suppressed=suppressed))
    assert tokens.tolist() == [1, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_told(bad: float, temperature: float) -> None:
    logits = torch.zeros(3, 9)
    logits[1, 4] = bad
    tokens = sample(logits, rows_of(3, temperature=temperature))
    assert tokens[1] == NOT_FINITE
    assert (tokens[[0, 2]] >= 0).all()
