"""What a step may cost the host after start-up: no compilation, allocation or wait."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from demo import CHECKPOINT
from switchyard.worker.link import MAX_STEPS_IN_FLIGHT
from tests.workers.gpu.driver import (
    CUDA,
    PARAMS,
    Frontend,
    Params,
    check_compilations,
    compilations,
    no_synchronisation,
    random_prompts,
)
from tests.workers.steps import start_rank
from workers.step.runner import StepHandle

pytestmark = pytest.mark.gpu


def num_allocations() -> int:
    return int(torch.cuda.memory_stats()["allocation.all.allocated"])


@pytest.mark.parametrize(
    ("cuda_graphs", "quantization", "kv_cache_dtype"),
    [
        ("on", "auto", "auto"),
        ("off", "auto", "auto"),
        ("on", "fp8", "auto"),
        ("off", "fp8", "auto"),
        ("off", "fp8", "fp8_e4m3"),
        ("on", "auto", "fp8_e4m3"),
    ],
)
def test_no_step_after_start_up_compiles(
    cuda_graphs: str, quantization: str, kv_cache_dtype: str
) -> None:
    rank = start_rank(
        CHECKPOINT, dtype="bfloat16", max_batch_size=40, max_num_batched_tokens=512,
        num_blocks=4096, cuda_graphs=cuda_graphs, quantization=quantization,
        kv_cache_dtype=kv_cache_dtype, **CUDA,
    )  # fmt: skip
    check_compilations(rank, 1000, 400)


def test_a_compilation_would_be_counted() -> None:
    with compilations() as names:
        start_rank(CHECKPOINT, dtype="float32", block_size=8, cuda_graphs="off", **CUDA)
    assert names


@pytest.mark.parametrize(
    ("kinds", "quantization", "kv_cache_dtype"),
    [
        (PARAMS[:1], "auto", "auto"),
        (PARAMS[:2], "auto", "auto"),
        (PARAMS[1:4], "auto", "auto"),
        (PARAMS, "auto", "auto"),
        (PARAMS, "fp8", "auto"),
        (PARAMS, "auto", "fp8_e4m3"),
        (PARAMS[:1], "fp8", "fp8_e4m3"),
    ],
)
def test_decodes_neither_allocate_nor_wait(
    kinds: list[Params], quantization: str, kv_cache_dtype: str
) -> None:
    """Fifty steps of growing contexts and new blocks, rows joining and leaving."""
    rank = start_rank(
        CHECKPOINT, dtype="bfloat16", max_batch_size=24, max_num_batched_tokens=512,
        num_blocks=1024, quantization=quantization, kv_cache_dtype=kv_cache_dtype, **CUDA,
    )  # fmt: skip
    frontend, rng = Frontend(rank), random.Random(6)
    for slot, prompt in random_prompts(24, 1000, 60, 7).items():
        params = kinds[slot % len(kinds)]
        step = frontend.step(prompts={slot: dataclasses.replace(prompt, params=params)})
        rank.runner.launch(step).result()
    torch.cuda.synchronize()
    before = num_allocations()
    flying: list[StepHandle] = []
    for number in range(50):
        step = frontend.step(rng.sample(range(24), 13 + number // 5))
        with no_synchronisation():
            flying.append(rank.runner.launch(step))
        if len(flying) == MAX_STEPS_IN_FLIGHT:
            flying.pop(0).result()
    drawn = [handle.result().token_ids for handle in flying]
    assert num_allocations() == before
    assert all(0 <= token < 1024 for tokens in drawn for token in tokens)


def test_launching_a_prompt_never_waits() -> None:
    rank = start_rank(
        CHECKPOINT, dtype="bfloat16", max_batch_size=24, max_num_batched_tokens=512,
        num_blocks=1024, **CUDA,
    )  # fmt: skip
    frontend = Frontend(rank)
    for slot, prompt in random_prompts(24, 1000, 400, 8).items():
        step = frontend.step(range(slot), {slot: prompt})
        with no_synchronisation():
            handle = rank.runner.launch(step)
        drawn = handle.result().token_ids
        assert len(drawn) == slot + 1
        assert all(0 <= token < 1024 for token in drawn)
