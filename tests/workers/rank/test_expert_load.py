"""What ranks say of their load: over all ranks, each token once for each of its experts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from demo import CHECKPOINT
from moe.base.parallel import resolve_parallel
from switchyard.worker.v1 import worker_pb2
from tests.workers.launched import Stream, launched, link
from tests.workers.steps import decode_step, prefill_step, start_rank
from workers.models.sparse_mlp import SparseMLP
from workers.rank.expert_load import LoadReport
from workers.rank.startup import LoadedRank

SINGLE = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
PROMPTS = ([5, 9, 300, 44, 44, 7, 120], [11, 60, 3])  # of one replica, and of the other


@pytest.fixture(scope="module")
def rank() -> LoadedRank:
    return start_rank(CHECKPOINT)


def steps_of(prompt: Sequence[int], max_tokens: int) -> list[worker_pb2.StepRequest]:
    """A prefill, which draws greedily, and a decode."""
    prefill = prefill_step(1, 0, list(prompt), [0])
    decode = decode_step(2, [0], [len(prompt)], [[]])
    prefill.max_replica_tokens = max_tokens
    return [prefill, decode]


def counted(rank: LoadedRank, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """[L, E] of the routers' own outputs, as a single rank computes them."""
    config = rank.model_config
    layers = [layer.mlp.block for layer in rank.model.layers if isinstance(layer.mlp, SparseMLP)]
    counts_LE = torch.zeros(len(layers), config.moe.num_experts, dtype=torch.int64)
    hooks = []
    for counts_E, block in zip(counts_LE, layers, strict=True):

        def count(_, __, topk, counts_E=counts_E) -> None:
            ids = topk.ids.flatten().long()
            counts_E += torch.bincount(ids, minlength=len(counts_E))

        hooks.append(block.gate.register_forward_hook(count))
    for prompt in prompts:
        for step in steps_of(prompt, len(prompt)):
            rank.runner.launch(step).result()
    for hook in hooks:
        hook.remove()
    return counts_LE


def sparse_layers(rank: LoadedRank) -> list[int]:
    return [layer for layer, sparse in enumerate(rank.model_config.moe_layers) if sparse]


def as_tensor(answer: worker_pb2.GetExpertLoadResponse) -> torch.Tensor:
    return torch.tensor(answer.tokens).view(len(answer.layers), answer.num_experts)


def test_one_rank_counts_what_its_routers_said_and_a_snapshot_stays(rank: LoadedRank) -> None:
    report = LoadReport(rank.model.expert_load, rank.model_config.moe_layers, SINGLE, 0)
    before = report.snapshot()
    counts_LE = counted(rank, PROMPTS)
    after = report.snapshot().answer()
    assert list(after.layers) == sparse_layers(rank)
    assert torch.equal(as_tensor(after) - as_tensor(before.answer()), counts_LE)
    num_tokens = sum(len(prompt) + 1 for prompt in PROMPTS)
    assert (counts_LE.sum(1) == num_tokens * rank.model_config.moe.num_experts_per_tok).all()


def test_a_dense_model_has_no_load() -> None:
    assert LoadReport(None, [False, False], SINGLE, 0).snapshot() is None


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "num_replicas"),
    [
        ("--tp 2", 1),
        pytest.param("--tp 2 --dp 2", 2, marks=pytest.mark.grid),
        ("--tp 2 --dp 2 --moe-ep-backend all_to_all", 2),
    ],
)
def test_the_sum_over_ranks_has_each_token_once(
    rank: LoadedRank, tmp_path: Path, flags: str, num_replicas: int
) -> None:
    prompts = PROMPTS[:num_replicas]
    with launched(tmp_path, *flags.split(), "--dtype", "float32") as group:
        num_ranks = group.describe().world_size
        for local_rank in range(num_ranks):
            group.describe(local_rank)
        with contextlib.ExitStack() as stack:
            stubs = [stack.enter_context(link(group.address(r))) for r in range(num_ranks)]
            streams = [Stream(stub, epoch=1) for stub in stubs]
            steps = [steps_of(prompt, max(map(len, prompts))) for prompt in prompts]
            for of_step in zip(*steps, strict=True):
                for number, stream in enumerate(streams):
                    stream.send(of_step[number // 2])
                assert [stream.receive().step_id for stream in streams]
            request = worker_pb2.GetExpertLoadRequest()
            answers = [stub.GetExpertLoad(request, timeout=5) for stub in stubs]
    assert {tuple(answer.layers) for answer in answers} == {tuple(sparse_layers(rank))}
    total = sum(as_tensor(answer) for answer in answers)
    assert torch.equal(total, counted(rank, prompts))
