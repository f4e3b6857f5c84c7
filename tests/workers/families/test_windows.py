"""Sequences far longer than their windows, in caches that only freed blocks make large enough: a
rank under the scheduler itself, against transformers, in fp32 on the CPU."""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from frontend.link.worker_group import _encode
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.step import Drawn, Step
from moe.base.context import KernelContext
from switchyard.worker.v1 import worker_pb2
from tests.frontend.builders import Driver, make_request, taken
from tests.service.oracle import check_greedy
from tests.workers.families.draw_parts import VOCAB
from tests.workers.families.draws import FAMILIES, save_family
from tests.workers.steps import interpreted, start_rank
from workers.attention.layer_groups import LayerGroups
from workers.config_json.model_config import ModelConfig
from workers.rank.startup import LoadedRank

LONGEST, BLOCK = 160, 4


@pytest.fixture(autouse=True)
def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take as long as all else here."""
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))


class Rank:
    """One replica, as `Driver` has its workers."""

    def __init__(self, rank: LoadedRank) -> None:
        self.rank = rank

    def run(self, step: Step) -> list[Drawn]:
        (batch,) = step.batches
        request = worker_pb2.ExecuteRequest.FromString(_encode(step, batch)).step
        return [Drawn(tokens=list(self.rank.runner.launch(request).result().token_ids))]


def config_of(family: str) -> Any:
    """The first draw with windows of 6 or more, and layers without one if the family has such."""
    for seed in itertools.count():
        config = FAMILIES[family](random.Random(f"{family} {seed}"))
        specs = ModelConfig.from_hf(config.to_dict()).attention
        windows = LayerGroups.of(specs, LONGEST).windows
        if max(window or 0 for window in windows) > 5 and (
            family == "mixtral" or (None in windows and len(windows) > 1)
        ):
            return config
    raise AssertionError


@pytest.mark.parametrize(
    ("family", "kernels"),
    [
        ("afmoe", False),
        ("exaone_moe", False),
        ("laguna", False),
        ("mellum", False),
        ("mixtral", False),
        pytest.param("mellum", True, marks=(pytest.mark.interpreter, pytest.mark.grid)),
    ],
)
def test_long_sequences_in_few_blocks(family: str, kernels: bool, tmp_path: Path) -> None:
    """Prompts in chunks beside decodes, with two steps in flight; then a turn that goes on from
    what is left of its conversation, whose first blocks are gone where layers have windows."""
    config = config_of(family)
    oracle = save_family(config, tmp_path)
    context: KernelContext | None = interpreted() if kernels else None
    step_tokens, length = (3, 30) if kernels else (16, 80)
    sizes = {"max_batch_size": 3, "max_num_batched_tokens": step_tokens, "max_model_len": LONGEST}
    specs = ModelConfig.from_hf(config.to_dict()).attention
    groups = LayerGroups.of(specs, LONGEST)
    limits = SchedulerLimits(
        **sizes,
        block_size=BLOCK,
        num_blocks=1,
        windows=tuple(window or 0 for window in groups.windows),
        max_queued_requests=9,
        max_queued_tokens=1000,
    )
    num_blocks = limits.groups.needed(length + 9) + 2
    assert num_blocks < groups.num_groups * -(-(length + 9) // BLOCK)
    rank = start_rank(tmp_path, context, block_size=BLOCK, num_blocks=num_blocks, **sizes)
    assert rank.model.layer_groups == groups
    # What stands there when nothing was written must not matter.
    for layer in rank.runner.forward.cache.layers:
        layer.keys.fill_(1e4)
        layer.values.fill_(1e4)
    driver = Driver(dataclasses.replace(limits, num_blocks=num_blocks), depth=2)
    driver.workers = Rank(rank)  # type: ignore[assignment]
    rng = random.Random(family)
    prompts = [rng.choices(range(2, VOCAB), k=length * 2 // 3 - 7 * n) for n in range(3)]
    requests = [
        make_request(f"r{n}", prompt, max_new_tokens=length - len(prompt))
        for n, prompt in enumerate(prompts)
    ]
    for request in requests:
        request.sampling = dataclasses.replace(request.sampling, temperature=0.0)
    driver.run(*requests)
    output_of: dict[str, list[int]] = {}
    for request in requests:
        output = output_of[request.id] = taken(request).token_ids
        assert len(output) == length - len(request.prompt_ids)
        check_greedy(oracle, request.prompt_ids, output)
    last = max(requests, key=lambda request: request.finished)
    before = [*last.prompt_ids, *output_of[last.id], 3]
    turn = make_request("turn", before, max_new_tokens=8)
    turn.sampling = dataclasses.replace(turn.sampling, temperature=0.0)
    driver.run(turn)
    assert turn.cached_tokens >= length - 2 * BLOCK
    check_greedy(oracle, before, taken(turn).token_ids)
