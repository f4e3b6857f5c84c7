"""What sequences may ask of a draw, in milliseconds added to a decode step.

``python -m benchmarks.sampling [--batch-sizes 1 64 256] [--vocab-size 151936] [--steps 30]
[--device auto] [--json FILE]``

The logits are made up and no model runs; on a GPU the device is kept busy for a while before each
draw, as a model would, so that its time is not the host's. Steps fly as many at once as a frontend
sends. Each row of a kind asks for all of the kind.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks import report
from moe.base.checkpoint_slice import CheckpointSlice
from switchyard.worker.link import MAX_STEPS_IN_FLIGHT
from switchyard.worker.v1 import worker_pb2
from workers.attention.kv_cache import CacheSizes, KVCache
from workers.models.base import ForwardBatch
from workers.sampling.triton_sampler import TritonSampler
from workers.step.batch import BatchBuilder
from workers.step.forward import StepForward
from workers.step.result_buffer import ResultBuffer
from workers.step.roofline import StepCost
from workers.step.runner import Measure, Runner, StepHandle
from workers.step.token_sampler import TokenSampler

_PROMPT, _OUTPUT = 1024, 256  # tokens of each sequence before the first step
_SLEEP_CYCLES = 20_000_000
_WARM_UP = 5

PENALTIES = {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1}
LOGPROBS = {"num_logprobs": 6}
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "logprobs=5": (LOGPROBS, False),
    "penalties": (PENALTIES, False),
    "masks": ({}, True),
    "everything": ({**LOGPROBS, **PENALTIES, "banned_token_ids": [3, 5, 8]}, True),
}


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    name = flags.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    rows = [row for size in flags.batch_sizes for row in measure(size, flags, device)]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    title = f"Milliseconds added to a decode step, {flags.vocab_size} tokens, {where}"
    report.show(title, rows, flags.json)


def measure(batch_size: int, flags: argparse.Namespace, device: torch.device) -> list[report.Row]:
    """A row for each kind, of what it adds to a step of sequences that ask for nothing."""

    def times(params: dict[str, Any], *, masked: bool) -> tuple[float, float]:
        runner = make_runner(batch_size, flags.vocab_size, device)
        step = decode_step(batch_size, flags.vocab_size, params, masked=masked)
        return time_steps(runner, step, flags.steps)

    plain_device_ms, plain_host_ms = times({}, masked=False)
    rows: list[report.Row] = []
    for kind, (params, masked) in KINDS.items():
        device_ms, host_ms = times(params, masked=masked)
        added = {"device ms": device_ms - plain_device_ms, "host ms": host_ms - plain_host_ms}
        rows.append({"batch": batch_size, "kind": kind, **added})
    return rows


class MadeUpModel(nn.Module):
    """Logits of the rows, always the same, written anew for each step as a head writes them."""

    def __init__(self, batch_size: int, vocab_size: int, device: torch.device) -> None:
        super().__init__()
        self.expert_load = None
        self.num_kv_heads = 0
        self.tied_weights: frozenset[str] = frozenset()
        self.on_cuda = device.type == "cuda"
        dtype = torch.bfloat16 if self.on_cuda else torch.float32
        generator = torch.Generator(device).manual_seed(1)
        shape = (batch_size, vocab_size)
        self.made_up = torch.randn(shape, generator=generator, device=device).mul_(4).to(dtype)
        self.written = torch.empty_like(self.made_up)

    def forward(self, batch: ForwardBatch, cache: KVCache) -> torch.Tensor:
        if self.on_cuda:
            torch.cuda._sleep(_SLEEP_CYCLES)
        return self.written.copy_(self.made_up)

    def logits(self, hidden_DH: torch.Tensor) -> torch.Tensor:
        return hidden_DH

    def checkpoint_slices(self) -> Iterator[CheckpointSlice]:
        return iter(())


def make_runner(batch_size: int, vocab_size: int, device: torch.device) -> Runner:
    """Without a model, a cache or graphs; on a GPU kernels draw."""
    on_cuda = device.type == "cuda"
    triton = None
    if on_cuda:
        triton = TritonSampler(max_rows=batch_size, vocab_size=vocab_size, device=device, pdl=True)
    builder = BatchBuilder(
        num_slots=batch_size, max_blocks=1, block_size=1 << 16, max_tokens=batch_size,
        device=device,
    )  # fmt: skip
    cost = StepCost(dense_bytes=0, head_bytes=0, expert_bytes=0, cache_bytes=0, flops=0)
    roofline: Any = SimpleNamespace(cost=lambda work, experts_hit: cost, windows=())
    model = MadeUpModel(batch_size, vocab_size, device)
    results = ResultBuffer(num_slots=batch_size, num_sparse_layers=0, device=device)
    sampler = TokenSampler(
        model.logits, builder.logits_processor, last_token_S=builder.last_token,
        out_tokens_S=results.tokens_S, reports=True, triton=triton,
    )  # fmt: skip
    sizes = CacheSizes(
        num_layers=0,
        block_size=1 << 16,
        num_kv_heads=1,
        head_dim=1,
        v_head_dim=1,
        dtype=torch.float32,
    )
    forward = StepForward(model, KVCache(sizes, 0, device), results.hits_L)
    return Runner(forward, builder, sampler, results, Measure(roofline, None))


def decode_step(
    batch_size: int, vocab_size: int, params: dict[str, Any], *, masked: bool
) -> worker_pb2.StepRequest:
    """Every sequence draws; half of the vocabulary is allowed where there are masks."""
    rng = random.Random(2)
    step = worker_pb2.StepRequest(
        num_decodes=batch_size, slots=range(batch_size), positions=[_PROMPT + _OUTPUT] * batch_size,
        num_new_blocks=[1] * batch_size, new_blocks=range(batch_size),
        max_replica_tokens=batch_size,
    )  # fmt: skip
    for slot in range(batch_size):
        new = step.new_sequences.add(slot=slot, temperature=0.8, top_p=1.0, seed=slot, **params)
        if "presence_penalty" in params:
            new.history_token_ids.extend(rng.choices(range(vocab_size), k=_PROMPT + _OUTPUT))
            new.num_prompt_tokens = _PROMPT
    if masked:
        step.masked_draws.extend(range(batch_size))
        step.draw_masks = rng.randbytes(-(-vocab_size // 32) * 4) * batch_size
    return step


def time_steps(runner: Runner, step: worker_pb2.StepRequest, count: int) -> tuple[float, float]:
    """Median milliseconds of a step on the device and in `launch`; the first steps, which begin
    the sequences, do not count."""
    device_ms, host_ms = [], []
    flying: list[StepHandle] = []
    for number in range(_WARM_UP + count):
        began = time.perf_counter()
        flying.append(runner.launch(step))
        host_ms.append((time.perf_counter() - began) * 1e3)
        if not number:
            step.ClearField("new_sequences")
            step.ClearField("new_blocks")
            step.num_new_blocks[:] = [0] * len(step.slots)
        if len(flying) == MAX_STEPS_IN_FLIGHT:
            device_ms.append(flying.pop(0).result().device_seconds * 1e3)
    device_ms += [handle.result().device_seconds * 1e3 for handle in flying]
    return statistics.median(device_ms[_WARM_UP:]), statistics.median(host_ms[_WARM_UP:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--vocab-size", type=int, default=151_936)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    report.add_flags(parser)
    return parser


if __name__ == "__main__":
    main()
