"""A pool of ranks that stay up for a whole test module, and what they run.

Owns the processes and their groups: the world, and its pairs (0, 1), (2, 3).
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from moe.base.context import KernelContext, make_context
from moe.base.parallel import ParallelConfig, resolve_parallel
from moe.config import MoEConfig
from moe.groups import ExpertGroups
from moe.layer import SparseMoeBlock
from moe.routes import local_ids
from tests.interpreter import patch_cost, patch_once_a_launch
from tests.moe.builders import Weights, fill, interpreted, make_weights, oracle
from tests.processes import forks


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One forward pass of a layer over tp × dp ranks; `counts` has a replica's tokens each.

    With `kernels` they run interpreted; on GPUs they always run. A replica's last `padding` tokens
    are none.
    """

    tp: int
    dp: int
    backend: str
    counts: tuple[int, ...]
    ep: int | None = None
    config: MoEConfig
    runner: str = "fused"
    exact: bool = False
    skew: bool = False
    kernels: bool = False
    padding: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def parallel(self) -> ParallelConfig:
        return resolve_parallel(
            tp=self.tp, dp=self.dp, ep=self.ep, backend=self.backend, has_experts=True
        )

    def weights(self) -> Weights:
        """Made-up weights; `skew` sends every token to the same experts.

        With `exact`, no product of the router's or of an expert's matrices is rounded, so that
        bits do not depend on the order in which a GEMM adds, which may depend on its shape.
        """
        weights = make_weights(self.config)
        if self.exact:
            for name, weight in weights.items():
                if name == "gate.weight":
                    weights[name] = weight.mul(64).round() / 64
                elif name.startswith("experts."):
                    weights[name] = one_hot_rows(weight) if "down" in name else weight.sign()
        if self.skew:
            weights["gate.weight"].zero_()
        return weights

    def hidden(self, replica: int) -> torch.Tensor:
        """[T,H] of a replica."""
        generator = torch.Generator().manual_seed(100 + replica)
        hidden = torch.randn(self.counts[replica], self.config.hidden_size, generator=generator)
        return (hidden.mul(4).round() / 4 if self.exact else hidden).to(self.dtype)


def one_hot_rows(weight: torch.Tensor) -> torch.Tensor:
    """Keeps the largest element of each row."""
    best = weight.abs().argmax(dim=1, keepdim=True)
    return torch.zeros_like(weight).scatter(1, best, weight.gather(1, best))


@dataclass(slots=True)
class RankPool:
    """Starts the ranks once; `run` gives each rank of a case its answer."""

    folder: Path
    size: int = 4
    on_cuda: bool = False
    processes: list[Any] = field(default_factory=list)
    inboxes: list[Any] = field(default_factory=list)
    outboxes: list[Any] = field(default_factory=list)

    def start(self) -> None:
        context = mp.get_context("spawn") if self.on_cuda else forks()
        for rank in range(self.size):
            inbox, outbox = context.SimpleQueue(), context.SimpleQueue()
            args = (rank, self.size, self.on_cuda, str(self.folder / "rendezvous"), inbox, outbox)
            process = context.Process(target=_serve, args=args, daemon=True)
            process.start()
            self.processes.append(process)
            self.inboxes.append(inbox)
            self.outboxes.append(outbox)

    def run(self, case: Case) -> list[dict[str, Any]]:
        """Of each rank in order: `out`, its replica's [T,H], and `num_routes` it computed."""
        num_ranks = case.tp * case.dp
        for inbox in self.inboxes[:num_ranks]:
            inbox.put(case)
        answers = [outbox.get() for outbox in self.outboxes[:num_ranks]]
        failures = [answer for answer in answers if isinstance(answer, str)]
        assert not failures, failures[0]
        return [answer | {"out": torch.from_numpy(answer["out"])} for answer in answers]

    def stop(self) -> None:
        for inbox in self.inboxes:
            inbox.put(None)
        for process in self.processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()


def _serve(rank: int, size: int, on_cuda: bool, rendezvous: str, inbox: Any, outbox: Any) -> None:
    torch.set_num_threads(1)
    device = f"cuda:{rank}" if on_cuda else "cpu"
    if on_cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=size,
    )
    pairs = [dist.new_group([first, first + 1]) for first in range(0, size, 2)]
    while (case := inbox.get()) is not None:
        try:
            outbox.put(_forward(case, rank, pairs, device))
        except Exception:  # whatever it is, the test must see it
            outbox.put(traceback.format_exc())
    dist.destroy_process_group()


def _groups(case: Case, rank: int, pairs: list[Any]) -> ExpertGroups:
    groups = {1: None, 2: pairs[rank // 2], 4: dist.group.WORLD}
    ep = case.parallel.ep
    return ExpertGroups(
        tp_group=groups[case.tp],
        ep_group=groups[ep],
        tp_rank=rank % case.tp,
        tp_size=case.tp,
        dp_rank=rank // case.tp,
        dp_size=case.dp,
        ep_rank=rank if ep > 1 else 0,
        ep_size=ep,
    )


def _context(case: Case, device: str) -> KernelContext | None:
    if device != "cpu":
        return make_context(torch.device(device), case.dtype)
    if not case.kernels:
        return None
    patch_once_a_launch()
    patch_cost()
    return interpreted(case.dtype)


@torch.no_grad()
def _forward(case: Case, rank: int, pairs: list[Any], device: str) -> dict[str, Any]:
    layer = SparseMoeBlock(
        case.config,
        case.parallel,
        _groups(case, rank, pairs),
        case.runner,
        dtype=case.dtype,
        device=device,
        context=_context(case, device),
    )
    weights = case.weights()
    assert fill(layer.checkpoint_slices(""), weights) == set(weights)
    num_routes = 0
    run = layer.experts.run

    def counting_run(
        hidden: Any, topk: Any, w13: Any, w2: Any, expert_map: Any, context: Any, quantized: Any
    ) -> Any:
        nonlocal num_routes
        num_routes += int((local_ids(topk.ids, expert_map) >= 0).sum())
        return run(hidden, topk, w13, w2, expert_map, context, quantized)

    layer.experts.run = counting_run
    hidden, num_valid = case.hidden(rank // case.tp).to(device), None
    if case.padding:
        num_valid = torch.tensor([len(hidden) - case.padding], dtype=torch.int32, device=device)
    update = layer(hidden, max(case.counts), num_valid)
    out = update.total(case.dtype, layer.experts.context)
    return {"out": out.float().cpu().numpy(), "num_routes": num_routes}


def check(pool: RankPool, case: Case) -> list[dict[str, Any]]:
    """Every rank answers with its replica's tokens, as the oracle computes them."""
    answers = pool.run(case)
    weights = case.weights()
    tolerance = 1e-5 if case.dtype == torch.float32 else 4e-2
    for rank, answer in enumerate(answers):
        hidden = case.hidden(rank // case.tp)
        count = len(hidden) - case.padding
        expected = oracle(case.config, weights, hidden.float())[:count]
        found = answer["out"][:count].double()
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    return answers
