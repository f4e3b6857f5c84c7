"""Driving a Runner by hand, as a frontend with one replica would."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from moe.base.context import KernelContext
from moe.base.parallel import resolve_parallel
from moe.base.tiles import TileTable
from moe.base.workspace import Workspace
from switchyard.worker.v1 import worker_pb2
from workers.config import WorkerConfig
from workers.rank.startup import LoadedRank, start
from workers.step.block_tables import in_groups


def interpreted() -> KernelContext:
    """Kernels on a CPU, in fp32."""
    return KernelContext(
        workspace=Workspace("cpu"),
        tiles=TileTable(dtype="float32", item_size=4, shared_bytes=100_000),
        pdl=False,
        num_cores=2,
    )


def start_rank(model: Path, context: KernelContext | None = None, **settings: object) -> LoadedRank:
    """A single CPU rank of a model folder, in fp32; with a context its kernels are interpreted."""
    values = {
        "model": model,
        "listen": "unix:",
        "device": "cpu",
        "dtype": "float32",
        "max_batch_size": 8,
        "max_num_batched_tokens": 256,
        "num_blocks": 256,
        "self_check": "off",
        **settings,
    }
    parallel = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
    return start(WorkerConfig(**values), parallel, context)  # type: ignore[arg-type]


def prefill_step(
    step_id: int,
    slot: int,
    tokens: list[int],
    blocks: list[int],
    *,
    position: int = 0,
    draw: bool = True,
    **params: object,
) -> worker_pb2.StepRequest:
    """One row of given tokens; a new sequence when it starts at position 0."""
    step = worker_pb2.StepRequest(
        step_id=step_id,
        slots=[slot],
        positions=[position],
        num_tokens=[len(tokens)],
        token_ids=tokens,
        draws=[draw],
        num_new_blocks=[len(blocks)],
        new_blocks=blocks,
        max_replica_tokens=len(tokens),
    )
    if position == 0:
        step.new_sequences.add(slot=slot, **{"top_p": 1.0, **params})
    return step


def decode_step(
    step_id: int, slots: list[int], positions: list[int], new_blocks: list[list[int]]
) -> worker_pb2.StepRequest:
    """Every slot goes on from its last drawn token."""
    return worker_pb2.StepRequest(
        step_id=step_id,
        num_decodes=len(slots),
        slots=slots,
        positions=positions,
        num_new_blocks=[len(blocks) for blocks in new_blocks],
        new_blocks=[block for blocks in new_blocks for block in blocks],
        max_replica_tokens=len(slots),
        decode_only=True,
    )


@torch.inference_mode()
def step_logits(rank: LoadedRank, step: worker_pb2.StepRequest) -> torch.Tensor:
    """Run a step and return the logits of all its tokens, whether they are drawn behind or not. Its
    blocks are one group's of layers."""
    in_groups(step, rank.model.layer_groups.num_groups)
    batch = dataclasses.replace(rank.runner.builder.build(step).forward, drawn=None)
    return rank.model.logits(rank.model.forward(batch, rank.runner.forward.cache))


@torch.inference_mode()
def drawn_logits(rank: LoadedRank, step: worker_pb2.StepRequest) -> torch.Tensor:
    """As `step_logits`, of the tokens that are drawn behind: the last layer sees no others."""
    in_groups(step, rank.model.layer_groups.num_groups)
    batch = rank.runner.builder.build(step)
    hidden_RH = rank.runner.forward(batch)
    assert len(hidden_RH) == rank.runner.builder.num_slots < step.max_replica_tokens
    return rank.model.logits(hidden_RH[: len(batch.draw_slots_D)])


def relative_error(ours: torch.Tensor, oracle: torch.Tensor) -> float:
    """The largest difference over the oracle's largest value."""
    return float((ours.cpu() - oracle).abs().max() / oracle.abs().max())
