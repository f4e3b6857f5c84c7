"""All that a sequence may ask of its draws, in steps that mix sequences, against its definition."""

from __future__ import annotations

import pytest
import torch

from tests.workers.sampling.driver import Driver, Row, drive_at_random
from tests.workers.sampling.sampled import (
    NUM_SLOTS,
    SPOILT_POSITION,
    VOCAB,
    Asker,
    TableModel,
    make_runner,
    random_askers,
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_every_token_and_logprob_is_the_defined_one(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them with pieces so small that steps take several."""
    if seed % 2:
        monkeypatch.setattr("workers.sampling.logits_processor._PIECE", 2)
        monkeypatch.setattr("workers.sampling.logprobs.PROMPT_PIECE", 3)
    model = TableModel(VOCAB)
    driver = Driver(make_runner(model), model)
    drive_at_random(driver, random_askers(16, seed), seed, 60)
    assert driver.num_checked > 150
    assert driver.num_triggered
    assert max(model.head_rows) <= 128


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("dtype", "graphs"),
    [
        (torch.float32, False),
        (torch.bfloat16, True),
        pytest.param(torch.bfloat16, False, marks=pytest.mark.grid),
        pytest.param(torch.float32, True, marks=pytest.mark.grid),
    ],
)
def test_kernels_and_padded_steps_draw_the_same(dtype: torch.dtype, graphs: bool) -> None:
    """Kernels are interpreted; their logits are the model's type and lie where a graph leaves
    them, so that a bias or a penalty must not be rounded as they are."""
    model = TableModel(VOCAB, dtype)
    driver = Driver(make_runner(model, kernels=True, graphs=graphs), model)
    drive_at_random(driver, random_askers(9, 5, plain=0.2), 5, 13)
    assert driver.num_checked > 20


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "extra",
    [
        {"allowed_token_ids": [3], "banned_token_ids": [3]},
        {"banned_token_ids": list(range(VOCAB)), "top_p": 0.9, "top_k": 5, "min_p": 0.1},
        {"allowed_token_ids": [3, 4], "suppressed_token_ids": [3, 4], "suppress_until": 9},
        {"allowed_token_ids": [3], "repetition_penalty": 2.0, "presence_penalty": 2.0},
    ],
)
def test_a_draw_that_may_be_nothing_says_so_and_others_go_on(
    extra: dict, temperature: float, kernels: bool
) -> None:
    model = TableModel(VOCAB)
    driver = Driver(make_runner(model, kernels=kernels), model)
    params = {"temperature": temperature, "top_p": 1.0, "num_logprobs": 3}
    askers = [Asker([7, 8], {**params, **extra}), Asker([9], params)]
    for slot, asker in enumerate(askers):
        driver.begin(slot, asker)
    only = frozenset({5, 6}) if askers[0].penalized else None
    first = Row(0, askers[0], (7, 8), allowed=only)
    driver.launch([first, Row(1, askers[1], (9,))])
    driver.launch([Row(0, askers[0]), Row(1, askers[1])])
    driver.land_all()
    assert [asker.ended for asker in askers] == [True, False]


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.interpreter)])
def test_logits_that_are_not_finite_are_told_whatever_a_row_asks(kernels: bool) -> None:
    """An exclusion hides none of them."""
    model = TableModel(VOCAB)
    spoilt = list(range(3, VOCAB, 7))
    for extra in (
        {"banned_token_ids": spoilt},
        {"repetition_penalty": 1.2, "allowed_token_ids": [1, 2]},
        {"bias_token_ids": spoilt, "bias_values": [-100.0] * len(spoilt)},
    ):
        driver = Driver(make_runner(model, kernels=kernels), model)
        asker = Asker([5] * (SPOILT_POSITION + 1), {"top_p": 1.0, "num_logprobs": 4, **extra})
        driver.begin(2, asker)
        driver.launch([Row(2, asker, tuple(asker.tokens))])
        driver.land_all()
        assert asker.ended


def test_prompts_report_finite_numbers_where_logits_are_none() -> None:
    model = TableModel(VOCAB)
    runner = make_runner(model)
    tokens = [5] * (SPOILT_POSITION + 2)
    asker = Asker(tokens, {"top_p": 1.0, "num_logprobs": 4, "prompt_logprobs": True})
    driver = Driver(runner, model)
    driver.begin(0, asker)
    step = driver._step([Row(0, asker, tuple(tokens))])
    result = runner.launch(step).result()
    assert len(result.prompt_logprobs) == len(tokens) - 1
    assert torch.tensor(result.prompt_logprobs).isfinite().all()
    assert torch.tensor(result.prompt_top_logprobs).isfinite().all()
    assert max(result.prompt_top_token_ids) < VOCAB


@pytest.mark.interpreter
@pytest.mark.parametrize("seed", range(3))
def test_company_that_asks_changes_no_token_of_those_that_do_not(seed: int) -> None:
    """Plain sequences draw what they draw in a runner that never saw anything else."""

    def drawn(company: int) -> list[list[int]]:
        model = TableModel(VOCAB)
        driver = Driver(make_runner(model), model)
        plain = random_askers(3, seed, plain=1.0)
        others = random_askers(company, seed + 100, plain=0.0)
        for slot, asker in enumerate([*plain, *others]):
            driver.begin(slot, asker)
            driver.launch([Row(slot, asker, tuple(asker.tokens))])
        running = [*plain, *others]
        for _ in range(20):
            driver.launch([Row(slot, asker) for slot, asker in enumerate(running)])
        driver.land_all()
        assert (driver.runner.builder.logits_processor.counts is not None) == bool(company)
        return [asker.tokens for asker in plain]

    assert drawn(0) == drawn(NUM_SLOTS - 3)


def test_samples_of_one_seed_differ() -> None:
    """The sample's number is part of the draws' counter."""
    model = TableModel(VOCAB)
    driver = Driver(make_runner(model), model)
    askers = [
        Asker([3, 4], {"temperature": 1.0, "top_p": 1.0, "seed": 8, "sample_index": index})
        for index in range(NUM_SLOTS)
    ]
    for slot, asker in enumerate(askers):
        driver.begin(slot, asker)
        driver.launch([Row(slot, asker, (3, 4))])
    for _ in range(6):
        driver.launch([Row(slot, asker) for slot, asker in enumerate(askers)])
    driver.land_all()
    assert len({tuple(asker.tokens) for asker in askers}) == NUM_SLOTS


def test_a_rank_that_does_not_report_draws_and_runs_the_head_as_often() -> None:
    """In a tensor-parallel group the head is a collective."""
    seen = []
    for reports in (True, False):
        model = TableModel(VOCAB)
        runner = make_runner(model, reports=reports)
        params = {"temperature": 1.0, "top_p": 1.0, "num_logprobs": 4, "prompt_logprobs": True}
        asker = Asker([3, 4, 5, 6], {**params, "repetition_penalty": 1.2})
        driver = Driver(runner, model)
        driver.begin(0, asker)
        result = runner.launch(driver._step([Row(0, asker, (3, 4, 5, 6))])).result()
        assert bool(result.token_ids) == bool(result.logprobs) == reports
        assert len(result.prompt_logprobs) == 3 * reports
        seen.append((model.head_rows, runner.results.words[0].item()))
    assert seen[0] == seen[1]


def test_counts_take_memory_with_the_first_sequence_that_needs_them() -> None:
    model = TableModel(VOCAB)
    driver = Driver(make_runner(model), model)
    processor = driver.runner.builder.logits_processor
    for slot in range(NUM_SLOTS):
        params = {"top_p": 1.0, "presence_penalty": 0.5} if slot else {"top_p": 1.0}
        asker = Asker([slot], params)
        driver.begin(slot, asker)
        driver.launch([Row(slot, asker, (slot,))])
        assert (processor.counts is None) == (slot == 0)
    driver.land_all()
    assert processor.counts.values_RW.shape == (NUM_SLOTS, VOCAB)


EXTRAS = {"slot": 1, "top_p": 1.0}


@pytest.mark.parametrize(
    "fields",
    [
        {"bias_token_ids": [1, 2], "bias_values": [1.0]},
        {"bias_token_ids": [2, 2], "bias_values": [1.0, 2.0]},
        {"repetition_penalty": -1.0, "history_token_ids": [1], "num_prompt_tokens": 1},
        {"presence_penalty": 1.0},
        {"presence_penalty": 1.0, "history_token_ids": [1]},
        {"frequency_penalty": 1.0, "history_token_ids": [1], "num_prompt_tokens": 2},
        {"prompt_logprobs": True, "history_token_ids": [1], "num_prompt_tokens": 1},
        {"prompt_logprobs": True, "num_logprobs": 1},
        {"banned_token_ids": [VOCAB]},
        {"num_logprobs": VOCAB + 2},
        {"presence_penalty": 1.0, "history_token_ids": [1, VOCAB], "num_prompt_tokens": 1},
    ],
    ids=str,
)
def test_fields_of_a_sequence_that_contradict_each_other_are_refused(fields: dict) -> None:
    model = TableModel(VOCAB)
    driver = Driver(make_runner(model), model)
    driver.num_scheduled[1] = 0
    step = driver._step([Row(1, Asker([3], {}), (3,))])
    step.new_sequences.add(**EXTRAS, **fields)
    with pytest.raises(ValueError, match="slot 1"):
        driver.runner.launch(step)


@pytest.mark.parametrize(
    ("masked", "num_bytes"),
    [([0], 8), ([0], 0), ([], 12), ([0, 0], 24), ([1, 0], 24), ([2], 12), ([0], 16), ([0], 11)],
)
def test_masks_that_fit_neither_draws_nor_vocabulary_are_refused(
    masked: list[int], num_bytes: int
) -> None:
    model = TableModel(VOCAB)
    driver = Driver(make_runner(model), model)
    askers = [Asker([3], {"top_p": 1.0}), Asker([4], {"top_p": 1.0})]
    for slot, asker in enumerate(askers):
        driver.begin(slot, asker)
    step = driver._step([Row(slot, asker, (3,)) for slot, asker in enumerate(askers)])
    step.masked_draws.extend(masked)
    step.draw_masks = b"\xff" * num_bytes
    with pytest.raises(ValueError, match="mask"):
        driver.runner.launch(step)


@pytest.mark.parametrize("triggers", [[1], [1, 2], [-1, 3], [-1, -1, -1]])
def test_triggers_of_masks_are_one_for_each_and_of_decodes(triggers: list[int]) -> None:
    model = TableModel(VOCAB)
    driver = Driver(make_runner(model), model)
    askers = [Asker([3], {"top_p": 1.0}), Asker([4], {"top_p": 1.0})]
    for slot, asker in enumerate(askers):
        driver.begin(slot, asker)
    rows = [Row(slot, asker, (3,), allowed=frozenset({5})) for slot, asker in enumerate(askers)]
    step = driver._step(rows)
    step.mask_triggers.extend(triggers)
    with pytest.raises(ValueError, match="trigger"):
        driver.runner.launch(step)
