"""Where a step's time goes: each kernel's part of it, beside the kernel's own floor.

``python -m benchmarks.kernels MODEL [--batch-sizes 1 64] [--context 1088] [--prefill 1024 8192]``

Runs a rank in this process, without frontend and streams, on made-up weights, and lets CUPTI
(through torch.profiler) say when kernels end. A kernel's part is the time from the end of the one
before to its own end: chained kernels overlap, so their durations would count time twice; parts add
up to the step. Decode steps are replays of CUDA graphs, prefill steps are launched kernel by
kernel. Needs one CUDA device.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import report
from moe.config import resolve_parallel
from switchyard.worker.v1 import worker_pb2
from workers.config import WorkerConfig
from workers.startup import Rank, start

_REPEAT = 5
# Names of kernels by a piece of what CUPTI calls them; the library's GEMMs have many names.
_NAMES = {
    "_embed": "embed",
    "_sum_norm": "sum + residual + norm",
    "_qk_rope": "qk-norm + rope + cache",
    "_chunk": "attention",
    "_tile_kernel": "attention",
    "_join": "attention join",
    "_topk": "top-k",
    "_align": "align",
    "_gate_up": "experts gate·up",
    "_down": "experts down",
    "_expert_load": "expert load",
    "_race": "draw",
    "_winner": "draw",
    "_swiglu": "swiglu",
}
_GEMMS = ("_linear", "gemm", "nvjet", "cutlass", "gemv")
_COPIES = ("Memcpy", "Memset", "elementwise", "index", "vectorized")


class Kernel(NamedTuple):
    """One kernel of a step: its name and, in seconds of the profile, when it ended."""

    name: str
    end: float


def main() -> None:
    """Print one table a step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("model", type=Path, help="a folder with config.json")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--context", type=int, default=1088, help="of each decoding sequence")
    parser.add_argument("--prefill", type=int, nargs="*", default=[1024, 8192], help="tokens")
    report.add_flags(parser)
    flags = parser.parse_args()
    rank = _start(flags.model, max([1, *flags.batch_sizes]))
    rows: list[report.Row] = []
    for batch in flags.batch_sizes:
        steps = list(_decodes(rank, batch, flags.context))
        rows += _table(rank, f"decode B={batch}", steps)
    for tokens in flags.prefill:
        rows += _table(rank, f"prefill {tokens}", list(_prefills(rank, tokens)))
    title = f"Kernels: {flags.model.name}, {rank.device_name}, {str(rank.dtype)[6:]}"
    report.show(title, rows, flags.json)


def _start(model: Path, max_batch_size: int) -> Rank:
    config = WorkerConfig(
        model=model, listen="unix:", load_format="dummy", max_batch_size=max_batch_size
    )
    parallel = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
    return start(config, parallel)


def _decodes(rank: Rank, batch: int, context: int) -> Iterator[worker_pb2.StepRequest]:
    """Decodes of sequences that differ: their last tokens are drawn by a prefill of one token."""
    blocks = -(-(context + _REPEAT + 2) // rank.runner.builder.block_size)
    for slot in range(batch):
        step = worker_pb2.StepRequest(
            slots=[slot], positions=[0], num_tokens=[1], token_ids=[slot], draws=[True],
            num_new_blocks=[blocks], new_blocks=range(slot * blocks, (slot + 1) * blocks),
            max_replica_tokens=1,
        )  # fmt: skip
        step.new_sequences.add(slot=slot, temperature=1.0, top_p=1.0, seed=slot)
        rank.runner.launch(step).result()
    for number in range(_REPEAT + 2):
        yield worker_pb2.StepRequest(
            num_decodes=batch, slots=range(batch), positions=[context + number] * batch,
            num_new_blocks=[0] * batch, max_replica_tokens=batch, decode_only=True,
        )  # fmt: skip


def _prefills(rank: Rank, tokens: int) -> Iterator[worker_pb2.StepRequest]:
    """Prompts of at most 1024 random tokens."""
    block_size = rank.runner.builder.block_size
    vocab = rank.model_config.vocab_size
    for number in range(_REPEAT + 2):
        step = worker_pb2.StepRequest(max_replica_tokens=tokens)
        generator = torch.Generator().manual_seed(number)
        for slot, first in enumerate(range(0, tokens, 1024)):
            length = min(1024, tokens - first)
            step.new_sequences.add(slot=slot, temperature=1.0, top_p=1.0, seed=number)
            step.slots.append(slot)
            step.positions.append(0)
            step.num_tokens.append(length)
            step.token_ids.extend(torch.randint(vocab, (length,), generator=generator).tolist())
            step.draws.append(True)
            blocks = -(-length // block_size)
            step.num_new_blocks.append(blocks)
            step.new_blocks.extend(range(slot * blocks, (slot + 1) * blocks))
        yield step


def _table(rank: Rank, what: str, steps: list[worker_pb2.StepRequest]) -> list[report.Row]:
    """Parts of the last steps, summed by kernel: medians over the steps."""
    results = [rank.runner.launch(step).result() for step in steps[:2]]
    parts, walls, idles = [], [], []
    for step in steps[2:]:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            results.append(rank.runner.launch(step).result())
            torch.cuda.synchronize()
        kernels = list(_kernels(profiler))
        parts.append(_parts(kernels))
        walls.append(1e6 * results[-1].device_seconds)
        idles.append(1e6 * results[-1].idle_seconds)
    floors = _floors(rank, steps[-1], results[-1])
    rows: list[report.Row] = []
    for name in dict.fromkeys(name for part in parts for name in part):
        times = [part[name][0] for part in parts if name in part]
        floor = floors.get(name, 0.0)
        taken = statistics.median(times)
        rows.append(
            {
                "step": what,
                "kernel": name,
                "launches": parts[-1].get(name, (0.0, 0))[1],
                "µs": taken,
                "floor µs": floor,
                "share %": 100 * floor / taken if floor and taken else "–",
            }
        )
    rows.append(
        {
            "step": what,
            "kernel": "step (device seconds)",
            "launches": sum(count for _, count in parts[-1].values()),
            "µs": statistics.median(walls),
            "floor µs": 1e6 * results[-1].floor_seconds,
            "share %": 100e6 * results[-1].floor_seconds / statistics.median(walls),
        }
    )
    return rows


def _kernels(profiler: profile) -> Iterator[Kernel]:
    """Kernels in order of their ends."""
    events = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    for event in sorted(events, key=lambda event: event.time_range.end):
        yield Kernel(event.name, event.time_range.end)


def _parts(kernels: list[Kernel]) -> dict[str, tuple[float, int]]:
    """Microseconds and launches by kernel, GEMMs by their place in the layer."""
    parts: dict[str, tuple[float, int]] = {}
    labels = _labels([kernel.name for kernel in kernels])
    for before, kernel, label in zip(kernels, kernels[1:], labels[1:], strict=False):
        taken, count = parts.get(label, (0.0, 0))
        parts[label] = (taken + kernel.end - before.end, count + 1)
    return parts


def _labels(names: Iterable[str]) -> list[str]:
    """A GEMM is told by what ran before it."""
    labels: list[str] = []
    after = {
        "sum + residual + norm": ("qkv", "router or dense gate·up"),
        "attention": ("o_proj",) * 2,
        "attention join": ("o_proj",) * 2,
        "swiglu": ("dense down",) * 2,
        "expert load": ("head",) * 2,
    }
    last, norms_since_attention = "", 0
    for name in names:
        label = next((known for piece, known in _NAMES.items() if piece in name), "")
        if not label and any(piece in name for piece in _GEMMS):
            label = after.get(last, (last or "other gemm",) * 2)[norms_since_attention % 2]
        if not label:
            label = "copies" if any(piece in name for piece in _COPIES) else name[:40]
        if label == "attention":
            norms_since_attention = 0
        if label == "sum + residual + norm":
            norms_since_attention += 1 if last.startswith("o_proj") else 2 - norms_since_attention
        if label not in ("copies",):
            last = label
        labels.append(label)
    return labels


def _floors(
    rank: Rank, step: worker_pb2.StepRequest, result: worker_pb2.StepResult
) -> dict[str, float]:
    """Microseconds that each kind of kernel needs at least, over all layers of the step."""
    measure, config = rank.runner.measure, rank.model_config
    device = measure.device
    if device is None:
        return {}
    tokens = step.num_decodes + len(step.token_ids)
    heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, layers, size = config.hidden_size, config.num_layers, rank.dtype.itemsize

    def gemm(parameters: float, rows: float, times: float = layers) -> float:
        return (
            1e6
            * times
            * max(
                parameters * size / device.bytes_per_second,
                2 * parameters * rows / device.flops_per_second,
            )
        )

    lengths = [p + 1 for p in step.positions] if step.num_decodes else list(step.num_tokens)
    attended = sum(lengths) if step.num_decodes else sum(n * (n + 1) / 2 for n in lengths)
    cached = 2 * kv * size * sum(lengths) / device.bytes_per_second
    floors = {
        "qkv": gemm(hidden * (heads + 2 * kv), tokens),
        "o_proj": gemm(hidden * heads, tokens),
        "head": gemm(hidden * config.vocab_size, len(step.slots), 1),
        "attention": 1e6 * layers * max(cached, 4 * attended * heads / device.flops_per_second),
    }
    if config.moe is None:
        floors["router or dense gate·up"] = gemm(2 * hidden * config.intermediate_size, tokens)
        floors["dense down"] = gemm(hidden * config.intermediate_size, tokens)
        return floors
    hits = int(rank.runner.results[rank.runner.builder.num_slots :].sum())
    expert = hidden * config.moe.intermediate_size
    work = 2.0 * expert * tokens * config.moe.num_experts_per_tok * sum(config.moe_layers)
    for name, matrices in (("experts gate·up", 2), ("experts down", 1)):
        floors[name] = 1e6 * max(
            matrices * expert * size * hits / device.bytes_per_second,
            matrices * work / device.flops_per_second,
        )
    return floors


if __name__ == "__main__":
    main()
