"""Running steps: launch(step) → StepHandle; handle.result() → StepResult.

Owns the order stage → forward or graph → draw → copy back, and that launching never waits for the
device. A replica without work runs an empty step, since the others wait for it in the experts'
collectives (`moe.layer`). Knows nothing of gRPC streams or scheduling.
"""

from __future__ import annotations

import dataclasses
import time

import torch

from switchyard.worker.v1 import worker_pb2
from workers.sampling.logprobs import LogprobColumns, LogprobHandle
from workers.step.batch import BatchBuilder
from workers.step.forward import StepForward
from workers.step.graphs import NO_GRAPHS, StepGraphs
from workers.step.result_buffer import ResultBuffer
from workers.step.roofline import Device, Roofline, StepWork
from workers.step.token_sampler import TokenSampler


@dataclasses.dataclass(frozen=True, slots=True)
class Measure:
    """What turns a step into bytes, operations and their least time."""

    roofline: Roofline
    device: Device | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepHandle:
    """A launched step, whose tokens are on their way to the host.

    Attributes:
        num_tokens: at the start of `results`; from index `hits_at` on it has the number of experts
            that each sparse layer hit.
        started, done: events, or seconds on a CPU; `before` is the `done` of the step before.
        logprobs, prompt_logprobs: None where no row reports any.
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
    """Runs steps on one rank."""

    def __init__(
        self,
        forward: StepForward,
        builder: BatchBuilder,
        sampler: TokenSampler,
        results: ResultBuffer,
        measure: Measure,
        graphs: StepGraphs = NO_GRAPHS,
    ) -> None:
        self.forward = forward
        self.builder = builder
        self.sampler = sampler
        self.results = results
        self.measure = measure
        self.graphs = graphs
        self.last_done: torch.cuda.Event | float | None = None

    @torch.inference_mode()
    def launch(self, step: worker_pb2.StepRequest) -> StepHandle:
        """Stage and start a step.

        Raises:
            ValueError: the step's columns are inconsistent.
        """
        shape = None if self.builder.reads_prompts(step) else self.graphs.shape_for(step)
        batch = self.builder.build(step, shape)
        copy = self.results.next_copy()
        started = _now(None if copy is None else copy.started)
        out = self.forward(batch) if shape is None else self.graphs.replay(shape)
        logprobs = self.sampler.draw(out, batch)
        prompt_logprobs = self.sampler.prompt_logprobs(out, batch)
        results = self.results.to_host(copy)
        before, self.last_done = self.last_done, _now(None if copy is None else copy.done)
        rows, num_draws = batch.rows, int(batch.rows.draws.sum())
        return StepHandle(
            step_id=step.step_id,
            results=results,
            num_tokens=num_draws if self.sampler.reports else 0,
            hits_at=self.results.hits_at,
            work=StepWork.of_rows(
                rows.positions,
                rows.num_tokens,
                draws=num_draws,
                windows=self.measure.roofline.windows,
            ),
            measure=self.measure,
            started=started,
            done=self.last_done,
            before=before,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )


def _read(handle: LogprobHandle | None) -> LogprobColumns:
    return handle.read() if handle is not None else LogprobColumns([], [], [])


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
        assert isinstance(second, float)
        return second - first
    assert not isinstance(second, float)
    return float(first.elapsed_time(second)) / 1e3
