"""Running steps: launch(step) → StepHandle; handle.result() → StepResult.

Owns the order stage → forward → logits → draw → copy back, and that launching never waits for the
device. Knows nothing of gRPC streams or scheduling.
"""

from __future__ import annotations

import dataclasses
import time

import torch
from torch import nn

from switchyard.worker.v1 import worker_pb2
from workers.batch import BatchBuilder, DeviceBatch
from workers.kv_cache import KVCache
from workers.sampler import sample


@dataclasses.dataclass(frozen=True, slots=True)
class StepHandle:
    """A launched step, whose tokens are on their way to the host."""

    step_id: int
    tokens_D: torch.Tensor | None
    started: torch.cuda.Event | float
    done: torch.cuda.Event | float

    def result(self) -> worker_pb2.StepResult:
        """Wait for the step and report its tokens."""
        if isinstance(self.done, float):
            seconds = self.done - self.started
        else:
            self.done.synchronize()
            seconds = self.started.elapsed_time(self.done) / 1e3
        tokens = [] if self.tokens_D is None else self.tokens_D.tolist()
        return worker_pb2.StepResult(step_id=self.step_id, token_ids=tokens, device_seconds=seconds)


class Runner:
    """Runs steps on one rank.

    Args:
        reports: whether this rank's results carry the tokens (the first of a tp group).
    """

    def __init__(
        self, model: nn.Module, cache: KVCache, builder: BatchBuilder, *, reports: bool
    ) -> None:
        self.model = model
        self.cache = cache
        self.builder = builder
        self.reports = reports
        self.on_cuda = builder.device.type == "cuda"

    @torch.inference_mode()
    def launch(self, step: worker_pb2.StepRequest) -> StepHandle:
        """Stage and start a step.

        Raises:
            ValueError: the step's columns are inconsistent.
        """
        started = self._mark()
        batch = self.builder.build(step)
        hidden_TH = self.model(batch.forward, self.cache)
        tokens_D = self._draw(hidden_TH, batch)
        if not self.reports:
            tokens_D = None
        elif tokens_D is not None and self.on_cuda:
            tokens_D = tokens_D.to("cpu", non_blocking=True)
        return StepHandle(step.step_id, tokens_D, started, self._mark())

    def _draw(self, hidden_TH: torch.Tensor, batch: DeviceBatch) -> torch.Tensor | None:
        if batch.sampling is None:
            return None
        tokens_D = sample(self.model.logits(hidden_TH[batch.last_D]), batch.sampling)
        # A row without a token goes on with token 0 until the frontend hears of it and ends it.
        self.builder.last_token[batch.draw_slots_D] = tokens_D.clamp(min=0)
        return tokens_D

    def _mark(self) -> torch.cuda.Event | float:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def warm_up_steps(
    *, num_tokens: int, num_sequences: int, max_model_len: int, block_size: int
) -> list[worker_pb2.StepRequest]:
    """Two made-up steps of the largest shapes: a full prefill, and a draw for every slot.

    Blocks are numbered from 0; needs ``warm_up_blocks`` of the same arguments.
    """
    prefill = worker_pb2.StepRequest(step_id=0, max_replica_tokens=num_tokens)
    used, left, slot = 0, num_tokens, 0
    while left and slot < num_sequences:
        length = min(left, max_model_len)
        blocks = -(-length // block_size)
        prefill.new_sequences.add(slot=slot, temperature=1.0, top_p=0.9)
        prefill.slots.append(slot)
        prefill.positions.append(0)
        prefill.num_tokens.append(length)
        prefill.token_ids.extend([0] * length)
        prefill.draws.append(True)
        prefill.num_new_blocks.append(blocks)
        prefill.new_blocks.extend(range(used, used + blocks))
        used, left, slot = used + blocks, left - length, slot + 1
    prefill.max_replica_tokens = num_tokens - left
    decode = worker_pb2.StepRequest(
        step_id=1, num_decodes=num_sequences, max_replica_tokens=num_sequences
    )
    for slot in range(num_sequences):
        decode.new_sequences.add(slot=slot, temperature=1.0, top_p=0.9)
        decode.slots.append(slot)
        decode.positions.append(0)
        decode.num_new_blocks.append(1)
        decode.new_blocks.append(slot)
    return [prefill, decode]


def warm_up_blocks(
    *, num_tokens: int, num_sequences: int, max_model_len: int, block_size: int
) -> int:
    """Blocks that ``warm_up_steps`` touches."""
    rows = -(-num_tokens // max_model_len)
    return max(num_sequences, -(-num_tokens // block_size) + rows)
