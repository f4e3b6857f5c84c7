"""Running steps: launch(step) → StepHandle; handle.result() → StepResult.

Owns the order stage → forward → logits → adjust → draw → copy back, and that launching never waits
for the device. Knows nothing of gRPC streams or scheduling.
"""

from __future__ import annotations

import dataclasses
import time

import torch
from torch import nn

from switchyard.worker.link import MAX_STEPS_IN_FLIGHT
from switchyard.worker.v1 import worker_pb2
from workers.attention.kv_cache import KVCache
from workers.sampling.logprobs import Columns, LogprobHandle, Logprobs
from workers.sampling.torch_sampler import sample
from workers.sampling.triton_sampler import TritonSampler
from workers.step.batch import BatchBuilder, DeviceBatch
from workers.step.graphs import StepGraphs
from workers.step.roofline import Device, Roofline, StepWork


@dataclasses.dataclass(frozen=True, slots=True)
class Measure:
    """What turns a step into bytes, operations and their least time."""

    roofline: Roofline
    device: Device | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Copies:
    """Where a step's results come to on the host, and when it began and ended."""

    results: torch.Tensor
    started: torch.cuda.Event
    done: torch.cuda.Event


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepHandle:
    """A launched step, whose tokens are on their way to the host.

    Attributes:
        num_tokens: of these, at the front of `results`; behind them, from `hits_at` on, the experts
            each sparse layer hit.
        started, done: events, or seconds on a CPU; `before` is the `done` of the step before.
        logprobs, prompt_logprobs: None when nobody asked.
    """

    step_id: int
    results: torch.Tensor
    num_tokens: int
    hits_at: int
    work: StepWork
    measure: Measure
    started: torch.cuda.Event | float
    done: torch.cuda.Event | float
    before: torch.cuda.Event | float | None
    logprobs: LogprobHandle | None
    prompt_logprobs: LogprobHandle | None

    def result(self) -> worker_pb2.StepResult:
        """Wait for the step and report its tokens."""
        if not isinstance(self.done, float):
            self.done.synchronize()
        experts_hit = int(self.results[self.hits_at :].sum())
        cost = self.measure.roofline.cost(self.work, experts_hit)
        own, prompts = _read(self.logprobs), _read(self.prompt_logprobs)
        return worker_pb2.StepResult(
            step_id=self.step_id,
            token_ids=self.results[: self.num_tokens].tolist(),
            device_seconds=_seconds(self.started, self.done),
            floor_seconds=cost.floor_seconds(self.measure.device),
            idle_seconds=max(0.0, _seconds(self.before, self.started)),
            bytes_moved=cost.bytes_moved,
            flops=cost.flops,
            logprobs=own.logprobs,
            top_token_ids=own.top_token_ids,
            top_logprobs=own.top_logprobs,
            prompt_logprobs=prompts.logprobs,
            prompt_top_token_ids=prompts.top_token_ids,
            prompt_top_logprobs=prompts.top_logprobs,
        )


class Runner:
    """Runs steps on one rank.

    Args:
        reports: whether this rank's results carry the tokens (the first of a tp group).
        sampler: draws by kernels; None for plain torch.
    """

    def __init__(
        self,
        model: nn.Module,
        cache: KVCache | None,
        builder: BatchBuilder,
        measure: Measure,
        *,
        reports: bool,
        sampler: TritonSampler | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.builder = builder
        self.measure = measure
        self.reports = reports
        self.graphs = StepGraphs([], [])
        self.on_cuda = builder.device.type == "cuda"
        self.sampler = sampler
        self.logprobs = Logprobs(builder.device)
        load = model.expert_load
        num_layers = 0 if load is None else len(load.hits_L)
        self.results = torch.zeros(
            builder.num_slots + num_layers, dtype=torch.int32, device=builder.device
        )
        if load is not None:
            load.hits_L = self.results[builder.num_slots :]
        self.copies = (
            # One more than may fly: a step is also measured from the end of the one before it.
            [self._make_copies() for _ in range(MAX_STEPS_IN_FLIGHT + 1)] if self.on_cuda else []
        )
        self.num_launched = 0
        self.last_done: torch.cuda.Event | float | None = None

    @torch.inference_mode()
    def launch(self, step: worker_pb2.StepRequest) -> StepHandle:
        """Stage and start a step.

        Raises:
            ValueError: the step's columns are inconsistent.
        """
        shape = self.graphs.shape_for(step)
        batch = self.builder.build(step, shape)
        copies = self.copies[self.num_launched % len(self.copies)] if self.on_cuda else None
        self.num_launched += 1
        started = _now(copies and copies.started)
        out = self.forward(batch) if shape is None else self.graphs.replay(shape)
        logprobs = self._draw_tokens(out, batch)
        prompt_logprobs = self._prompt_logprobs(out, batch)
        if copies is None:
            results = self.results.clone()
        else:
            results = copies.results
            results.copy_(self.results, non_blocking=True)
        before, self.last_done = self.last_done, _now(copies and copies.done)
        rows, num_draws = batch.rows, int(batch.rows.draws.sum())
        return StepHandle(
            step_id=step.step_id,
            results=results,
            num_tokens=num_draws if self.reports else 0,
            hits_at=self.builder.num_slots,
            work=StepWork.of_rows(rows.positions, rows.num_tokens, draws=num_draws),
            measure=self.measure,
            started=started,
            done=self.last_done,
            before=before,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def forward(self, batch: DeviceBatch) -> torch.Tensor:
        """Logits ``[D, V]`` of a step padded to decodes, else the last hidden states ``[T, H]``:
        what a graph of the batch's shape holds."""
        hidden_TH = self.model(batch.forward, self.cache)
        return self.model.logits(hidden_TH) if _all_draw(batch) else hidden_TH

    def _logits(self, hidden_TH: torch.Tensor, batch: DeviceBatch) -> torch.Tensor:
        """Logits ``[D, V]`` of the rows that draw."""
        if batch.last_D is None:
            return self.model.logits(hidden_TH[: len(batch.draw_slots_D)])
        return self.model.logits(hidden_TH[batch.last_D])

    def _draw_tokens(self, out: torch.Tensor, batch: DeviceBatch) -> LogprobHandle | None:
        """Draw from what `forward` returned, with what the rows ask for around it."""
        if batch.sampling is None:
            return None
        logits_DV = out if _all_draw(batch) else self._logits(out, batch)
        extras = batch.extras
        if extras is None:
            self._draw(logits_DV, batch)
            return None
        ranked = self.logprobs.rank(logits_DV, extras.draws) if self.reports else None
        adjusted = self.builder.adjuster.adjust(logits_DV, extras)
        self._draw(adjusted.logits_DV, batch)
        tokens_D = self.results[: len(logits_DV)]
        self.builder.adjuster.settle(adjusted, tokens_D)
        return None if ranked is None else self.logprobs.of_draws(ranked, tokens_D)

    def _prompt_logprobs(self, out: torch.Tensor, batch: DeviceBatch) -> LogprobHandle | None:
        """From the hidden states that `forward` returned; drawing leaves them as they are."""
        if batch.extras is None or not batch.extras.prompts:
            return None
        return self.logprobs.of_prompts(
            out, batch.extras.prompts, self.model.logits, reports=self.reports
        )

    def _draw(self, logits_DV: torch.Tensor, batch: DeviceBatch) -> None:
        """Tokens to the front of ``results`` and to their slots' last tokens. A row without a
        finite token goes on with token 0 until the frontend hears of it and ends it."""
        assert batch.sampling is not None
        out_D = self.results[: len(logits_DV)]
        last_token, slots_D = self.builder.last_token, batch.draw_slots_D
        if self.sampler is not None:
            self.sampler.draw(
                logits_DV, batch.sampling, slots_D, last_token=last_token, out_D=out_D
            )
            return
        out_D.copy_(sample(logits_DV, batch.sampling))
        last_token[slots_D] = out_D.clamp(min=0)

    def _make_copies(self) -> _Copies:
        return _Copies(
            results=torch.zeros(len(self.results), dtype=torch.int32, pin_memory=True),
            started=torch.cuda.Event(enable_timing=True),
            done=torch.cuda.Event(enable_timing=True),
        )


def _all_draw(batch: DeviceBatch) -> bool:
    """Whether the batch is padded to decodes, each of which draws."""
    return batch.shape is not None and batch.shape.decodes


def _read(handle: LogprobHandle | None) -> Columns:
    return handle.read() if handle is not None else Columns([], [], [])


def _now(event: torch.cuda.Event | None) -> torch.cuda.Event | float:
    """The event, recorded; without one, the clock."""
    if event is None:
        return time.perf_counter()
    event.record()
    return event


def _seconds(first: torch.cuda.Event | float | None, second: torch.cuda.Event | float) -> float:
    if first is None:
        return 0.0
    if isinstance(first, float):
        return second - first
    return first.elapsed_time(second) / 1e3
