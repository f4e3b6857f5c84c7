"""Replays of graphs against the same steps launched kernel by kernel."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch

from demo import CHECKPOINT
from switchyard.worker.v1 import worker_pb2
from tests.workers.gpu.driver import (
    CUDA,
    Frontend,
    Prompt,
    random_prompts,
)
from tests.workers.known_parts import VOCAB, register, save_known_parts
from tests.workers.steps import start_rank
from tests.workers.tiny_models import random_config, save_model
from workers.rank.startup import LoadedRank
from workers.step.batch import BatchShape

pytestmark = pytest.mark.gpu


@torch.inference_mode()
def check_graphs(rank: LoadedRank, vocab_size: int) -> None:
    """Every captured shape, full and with as much padding as it may have, gives the bits of the
    same kernels launched one by one."""
    runner, graphs, rng = rank.runner, rank.runner.graphs, random.Random(0)
    slots = runner.builder.num_slots
    assert graphs.decodes[-1] == slots
    assert graphs.mixed
    frontend = Frontend(rank)
    for slot, prompt in random_prompts(slots, vocab_size, 40, 1).items():
        runner.launch(frontend.step(prompts={slot: prompt})).result()

    def check(step: worker_pb2.StepRequest, shape: BatchShape) -> None:
        assert graphs.shape_for(step) == shape
        num_tokens = step.max_replica_tokens
        batch = runner.builder.build(step, shape)
        # A step is run twice, from the same states where layers keep any.
        states = runner.forward.cache.states
        before = [(each.recurrent.clone(), each.inputs.clone()) for each in states]
        eager = runner.forward(batch)[:num_tokens].clone()
        for each, (recurrent, inputs) in zip(states, before, strict=True):
            each.recurrent.copy_(recurrent)
            each.inputs.copy_(inputs)
        replayed = graphs.replay(shape)[:num_tokens]
        assert eager.isfinite().all()
        assert torch.equal(eager, replayed), shape

    for before, size in itertools.pairwise([0, *graphs.decodes]):
        for count in {before + 1, size}:
            step = frontend.step(rng.sample(range(slots), count))
            check(step, BatchShape(size, decodes=True))
    for before, size in itertools.pairwise([0, *graphs.mixed]):
        # A large shape takes steps that are 15/16 full.
        for count in {before + 1 if size <= 2048 else 15 * size // 16, size}:
            decodes = rng.sample(range(1, slots), min(slots - 1, (count - 1) // 2))
            tokens = [rng.randrange(3, vocab_size) for _ in range(count - len(decodes))]
            step = frontend.step(decodes, {0: Prompt(tokens, {})})
            check(step, BatchShape(size, decodes=False))


@pytest.mark.parametrize(
    ("quantization", "kv_cache_dtype"),
    [
        ("auto", "auto"),
        ("fp8", "auto"),
        ("int4", "auto"),
        ("auto", "fp8_e4m3"),
        ("fp8", "fp8_e4m3"),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_graphs_of_the_demo_equal_single_launches(
    dtype: str, quantization: str, kv_cache_dtype: str
) -> None:
    rank = start_rank(
        CHECKPOINT, dtype=dtype, quantization=quantization, kv_cache_dtype=kv_cache_dtype,
        max_batch_size=256, max_num_batched_tokens=768, num_blocks=4096, **CUDA,
    )  # fmt: skip
    check_graphs(rank, 1000)


@pytest.mark.parametrize(("seed", "moe"), [(69, True), (62, True), (1, False)])
def test_graphs_of_random_models_equal_single_launches(
    seed: int, moe: bool, tmp_path: Path
) -> None:
    config = random_config(seed, moe=moe)
    save_model(config, tmp_path, seed)
    rank = start_rank(
        tmp_path, max_batch_size=16, max_num_batched_tokens=64, num_blocks=512,
        block_size=(16, 4, 5)[seed % 3], **CUDA,
    )  # fmt: skip
    check_graphs(rank, config.vocab_size)


def test_graphs_of_known_parts_equal_single_launches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups, correction bias and shared experts; their buffers are workspaces too."""
    register(monkeypatch)
    save_known_parts(tmp_path)
    rank = start_rank(
        tmp_path, max_batch_size=16, max_num_batched_tokens=64, num_blocks=512, **CUDA
    )
    check_graphs(rank, VOCAB)
    assert rank.runner.graphs.num_allocations == 0


@pytest.mark.parametrize("quantization", ["auto", "fp8", "int4"])
def test_capturing_allocates_nothing(quantization: str) -> None:
    """Every buffer that a graph holds is a workspace's."""
    rank = start_rank(CHECKPOINT, dtype="bfloat16", quantization=quantization, **CUDA)
    assert rank.runner.graphs.num_allocations == 0
