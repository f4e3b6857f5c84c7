"""Where a step's time goes: each kernel's part of it, beside the kernel's own floor.

``python -m benchmarks.kernels MODEL [--weights fp8|int4] [--kv-cache-dtype fp8_e4m3]
[--batch-sizes 1 64] [--context 1088] [--prefill 1024 8192]``

Runs a rank in this process, without frontend and streams, on made-up weights, and lets CUPTI
(through torch.profiler) say when kernels run. A kernel's part is the time from the end of the one
before to its own end: chained kernels overlap, so their durations would count time twice. The first
kernel, and copies before it, wait for the host: of these it is the duration alone. A step's last
row is what the rank itself measures, that wait included. Steps are replays of CUDA graphs where the
rank has captured their size. Needs one CUDA device.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import report
from moe.base.fp8_format import Fp8Format
from moe.base.parallel import resolve_parallel
from switchyard.worker.v1 import worker_pb2
from workers.attention.any import AnyAttention
from workers.attention.mla_spec import MlaSpec
from workers.config import WorkerConfig
from workers.config_json.model_config import ModelConfig
from workers.linear_attention.spec import DeltaSpec
from workers.rank.startup import LoadedRank, start
from workers.step.block_tables import in_groups
from workers.step.roofline import Device, StepWork

_WARM_UP, _REPEAT = 2, 5  # steps that are not measured, and that are
PROMPT = 1024  # most tokens of a prompt

# What a launch is for, by the first pattern that its name has. GEMMs, ours and the library's, have
# the same names all over a layer.
_LABELS = {
    "^_embed": "embed",
    "^_sum_norm": "sum + residual + norm",
    "^_qk_(rope|squares)": "qk-norm + rope + cache",
    "^_(chunk|tile)_kernel": "attention",
    "^_join": "attention join",
    "^_latent": "norms + latents",
    "^_absorb": "absorbed queries",
    "^_new": "attention to new",
    "^_(decode_delta|scan)": "delta rule",
    "^_prepare": "convolution",
    "^_solve": "delta systems",
    "^_gated_norm": "gated norm",
    "^_output_gate": "output gate",
    "^_quantize_rows": "quantized rows",
    "^_project": "values",
    "^_topk": "top-k",
    "^_align": "align",
    "^_gate_up": "experts gate·up",
    "^_down": "experts down",
    "^_swiglu": "swiglu",
    "^_expert_load": "expert load",
    "^_(race|winner)": "draw",
    "_linear|gemm|nvjet|cutlass|gemv": "gemm",
    "Memcpy|Memset|elementwise|index|vectorized": "copies",
}
_LANDMARKS = {*_LABELS.values()} - {"gemm", "copies"}
# A GEMM is known by the landmark that it stands behind, else by the one that it stands before.
_BEHIND = {
    "attention": "o_proj",
    "attention join": "o_proj",
    "norms + latents": "queries",
    "absorbed queries": "keys and values",
    "values": "o_proj",
    "gated norm": "out_proj",
    "swiglu": "dense down",
    "expert load": "head",
}
_BEFORE = {
    "qk-norm + rope + cache": "qkv",
    "norms + latents": "latents",
    "delta rule": "qkvz",
    "convolution": "qkvz",
    "top-k": "router",
    "experts gate·up": "router",  # where it chooses its experts itself
    "swiglu": "dense gate·up",
    "draw": "head",
}

_OUTPUTS = {"o_proj", "out_proj"}

Parts = dict[str, list[float]]  # microseconds of each launch, by label


class Launch(NamedTuple):
    """A kernel or a copy of a step: its name and, in microseconds, when it began and ended."""

    name: str
    start: float
    end: float


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("model", type=Path, help="a folder with config.json")
    parser.add_argument("--weights", choices=("fp8", "int4"), help="default: as the folder says")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8_e4m3"), default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--context", type=int, default=1088, help="of each decoding sequence")
    parser.add_argument("--prefill", type=int, nargs="*", default=[1024, 8192], help="tokens")
    report.add_flags(parser)
    flags = parser.parse_args()
    prompts = [-(-tokens // PROMPT) for tokens in flags.prefill]
    rank = start_rank(
        flags.model,
        max_batch_size=max([1, *flags.batch_sizes, *prompts]),
        quantization=flags.weights or "auto",
        kv_cache_dtype=flags.kv_cache_dtype,
    )
    size, vocab = rank.runner.builder.block_size, rank.model_config.vocab_size
    decodes = {
        f"decode B={B}": list(decode_steps(B, flags.context, size)) for B in flags.batch_sizes
    }
    prefills = {f"prefill {T}": list(prefill_steps(T, size, vocab)) for T in flags.prefill}
    cases = decodes | prefills
    for step in (step for steps in cases.values() for step in steps):
        in_groups(step, rank.model.layer_groups.num_groups)
    for what, steps in cases.items():
        _check_fits(rank, what, steps[0])
    rows = [row for what, steps in cases.items() for row in _measure(rank, what, steps)]
    dtype = str(rank.dtype).removeprefix("torch.")
    if (quantization := rank.model_config.quantization) is not None:
        dtype += f", {quantization.weight_format.label} weights"
    if flags.kv_cache_dtype != "auto":
        dtype += ", FP8 cache"
    report.show(f"Kernels: {flags.model.name}, {rank.device_name}, {dtype}", rows, flags.json)


def decode_steps(batch: int, context: int, block_size: int) -> Iterator[worker_pb2.StepRequest]:
    """Decodes of sequences that differ: their last tokens are drawn by the first step, prompts of
    one token."""
    num_steps = _WARM_UP + _REPEAT
    num_blocks = -(-(context + num_steps) // block_size)
    yield _prompts([1] * batch, [num_blocks] * batch, list(range(batch)))
    for number in range(num_steps):
        yield worker_pb2.StepRequest(
            num_decodes=batch, slots=range(batch), positions=[context + number] * batch,
            num_new_blocks=[0] * batch, max_replica_tokens=batch, decode_only=True,
        )  # fmt: skip


def prefill_steps(tokens: int, block_size: int, vocab: int) -> Iterator[worker_pb2.StepRequest]:
    """Prompts of random tokens, all but the last as long as may be."""
    lengths = [min(PROMPT, tokens - first) for first in range(0, tokens, PROMPT)]
    num_blocks = [-(-length // block_size) for length in lengths]
    for seed in range(_WARM_UP + _REPEAT):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(vocab, (tokens,), generator=generator)
        yield _prompts(lengths, num_blocks, ids.tolist())


def _prompts(
    lengths: list[int], num_blocks: list[int], token_ids: list[int]
) -> worker_pb2.StepRequest:
    """New sequences in all slots from 0 on, each of which draws."""
    num_rows = len(lengths)
    step = worker_pb2.StepRequest(
        slots=range(num_rows), positions=[0] * num_rows, num_tokens=lengths, token_ids=token_ids,
        draws=[True] * num_rows, num_new_blocks=num_blocks, new_blocks=range(sum(num_blocks)),
        max_replica_tokens=sum(lengths),
    )  # fmt: skip
    for slot in range(num_rows):
        step.new_sequences.add(slot=slot, temperature=1.0, top_p=1.0, seed=slot)
    return step


def labels(names: Sequence[str]) -> list[str]:
    """What each launch of a step is for; a GEMM is told by the landmarks around it."""
    found = [_label(name) for name in names]
    before, behind = _last_landmarks(found), _last_landmarks(found[::-1])[::-1]
    return [
        _BEHIND.get(last) or _BEFORE.get(coming, "other gemm") if label == "gemm" else label
        for label, last, coming in zip(found, before, behind, strict=True)
    ]


def _label(name: str) -> str:
    """By the name alone, its beginning if nothing is known of it."""
    known = (label for pattern, label in _LABELS.items() if re.search(pattern, name))
    return next(known, name[:40])


def _last_landmarks(found: Sequence[str]) -> list[str]:
    """For each label the last landmark before it, empty for none."""
    seen = accumulate(found, lambda last, own: own if own in _LANDMARKS else last, initial="")
    return list(seen)[:-1]


def parts(launches: Sequence[Launch]) -> Parts:
    """Of launches in order of their ends."""
    found: Parts = {}
    last_end: float | None = None  # None until the first kernel has run
    for launch, label in zip(launches, labels([name for name, _, _ in launches]), strict=True):
        begin = launch.start if last_end is None else last_end
        found.setdefault(label, []).append(launch.end - begin)
        if last_end is not None or label != "copies":
            last_end = launch.end
    return found


def floors(
    config: ModelConfig,
    work: StepWork,
    experts_hit: int,
    value_bytes: int,
    device: Device | None,
    cache_bytes: int | None = None,
) -> dict[str, float]:
    """Microseconds that kernels need at least, by label, over all layers of a step; none for a
    device of unknown ceilings. Experts hit are pairs of a layer and an expert. Of weights
    of fewer bits all are counted as such that may be, at the rate of products of the model's type.

    Args:
        cache_bytes: of a token in the cache; by default its keys and values are as weights are.
    """
    if device is None:
        return {}
    weight_bytes = _weight_bytes(config, value_bytes)

    def least(values: float, products: float) -> float:
        """For values read once and products added up."""
        return 1e6 * device.least_seconds(value_bytes * values, 2 * products)

    def gemm(weights: float, products: float) -> float:
        return least(weights * weight_bytes / value_bytes, products)

    hidden, layers, tokens = config.hidden_size, config.num_layers, work.tokens
    cached, pairs = _attention_work(config, work)
    dense = [hidden * _dense_width(config, layer) for layer in range(layers)]
    # In the last layer only drawn tokens go on behind attention.
    unread = tokens - work.draws
    dense_products = tokens * sum(dense) - unread * dense[-1]
    last = _projections(config, [layers - 1])
    if cache_bytes is not None:
        cached *= cache_bytes / (value_bytes * sum(map(_cache_numbers, config.cached)))
    head = hidden * config.vocab_size
    found = {
        **{
            label: gemm(size, size * tokens - unread * last[label] * (label in _OUTPUTS))
            for label, size in _projections(config, range(layers)).items()
        },
        "attention": least(cached, pairs),
        "dense gate·up": gemm(2 * sum(dense), 2 * dense_products),
        "dense down": gemm(sum(dense), dense_products),
        "head": least(head, head * work.draws),
    }
    if states := [each for each in config.attention if isinstance(each, DeltaSpec)]:
        state_bytes = 2 * work.rows * sum(each.state_bytes(value_bytes) for each in states)
        products = tokens * sum(each.token_flops for each in states) / 2
        found["delta rule"] = least(state_bytes / value_bytes, products)
    if config.moe is not None:
        matrix = hidden * config.moe.intermediate_size
        seen = sum(config.moe_layers) * tokens - config.moe_layers[-1] * unread
        routes = seen * config.moe.num_experts_per_tok
        found["experts gate·up"] = gemm(2 * matrix * experts_hit, 2 * matrix * routes)
        found["experts down"] = gemm(matrix * experts_hit, matrix * routes)
    return found


def _attention_work(config: ModelConfig, work: StepWork) -> tuple[float, float]:
    """Over all layers: numbers in the cache that are read or written, and products."""
    numbers = products = 0.0
    for spec in config.cached:
        seen = work.seen(spec.window)
        numbers += _cache_numbers(spec) * seen.cached
        products += spec.pair_products * seen.attended
    return numbers, products


def _cache_numbers(spec: AnyAttention) -> int:
    """That a token has in one layer's cache."""
    return spec.cache_heads * (spec.key_width + spec.value_width)


def _dense_width(config: ModelConfig, layer: int) -> int:
    """Of the MLP that all tokens of a layer pass: shared experts are one too."""
    if config.moe is not None and config.moe_layers[layer]:
        return config.moe.shared_expert_size
    return config.intermediate_size


def _projections(config: ModelConfig, layers: Iterable[int]) -> Counter[str]:
    """Weights of attention's matrices over some layers, by the label that reads them."""
    sizes: Counter[str] = Counter()
    for spec in (config.attention[layer] for layer in layers):
        for module, outputs, inputs in spec.projections(config.hidden_size):
            size = outputs.size * inputs.size
            if isinstance(spec, DeltaSpec):
                sizes["out_proj" if module == "out_proj" else "qkvz"] += size
            elif module == "o_proj":
                sizes["o_proj"] += size
            elif not isinstance(spec, MlaSpec):
                sizes["qkv"] += size
            elif module == "kv_b_proj":
                of_keys = spec.num_heads * spec.qk_nope_head_dim * inputs.size
                sizes["absorbed queries"] += of_keys
                sizes["values"] += size - of_keys
            else:
                sizes["queries" if module == "q_b_proj" else "latents"] += size
    return sizes


def _weight_bytes(config: ModelConfig, value_bytes: int) -> float:
    """Of a weight: of four bits with its share of a scale and a zero point."""
    if config.quantization is None:
        return value_bytes
    said = config.quantization.weight_format
    if isinstance(said, Fp8Format):
        return 1.0
    columns = said.group or config.hidden_size
    return said.num_bytes(1, columns) / columns


def table(
    what: str, steps: list[Parts], least: dict[str, float], results: list[worker_pb2.StepResult]
) -> list[report.Row]:
    """A row a label, and the step's: medians of all steps, launches and floors of the last one."""
    last, cells = steps[-1], []
    for label in dict.fromkeys(label for step in steps for label in step):
        taken = statistics.median(sum(step[label]) for step in steps if label in step)
        cells.append((label, len(last.get(label, ())), taken, least.get(label, 0.0)))
    taken = 1e6 * statistics.median(result.device_seconds for result in results)
    launches, floor = sum(map(len, last.values())), 1e6 * results[-1].floor_seconds
    cells.append(("step (device seconds)", launches, taken, floor))
    return [
        {
            "step": what,
            "kernel": kernel,
            "launches": launches,
            "µs": taken,
            "floor µs": floor,
            "share %": 100 * floor / taken if floor and taken else "–",
        }
        for kernel, launches, taken, floor in cells
    ]


def start_rank(
    model: Path, *, max_batch_size: int, quantization: str, kv_cache_dtype: str
) -> LoadedRank:
    """The only one, in this process, with made-up weights."""
    config = WorkerConfig(
        model=model, listen="unix:", load_format="dummy", max_batch_size=max_batch_size,
        quantization=quantization, kv_cache_dtype=kv_cache_dtype,
    )  # fmt: skip
    parallel = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
    return start(config, parallel)


def _check_fits(rank: LoadedRank, what: str, step: worker_pb2.StepRequest) -> None:
    """Exit where a case asks for more blocks than there are."""
    needed = max(step.new_blocks) + 1
    if needed > rank.num_blocks:
        sys.exit(
            f"{what} needs {needed} blocks, the cache has {rank.num_blocks}; lower --batch-sizes, "
            "--context or --prefill"
        )


def _measure(
    rank: LoadedRank, what: str, steps: Sequence[worker_pb2.StepRequest]
) -> list[report.Row]:
    """Run steps, the last ones under the profiler."""
    for step in steps[:-_REPEAT]:
        rank.runner.launch(step).result()
    found, results = [], []
    for step in steps[-_REPEAT:]:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            handle = rank.runner.launch(step)
            results.append(handle.result())
            torch.cuda.synchronize()
        found.append(parts(_launches(profiler)))
    experts_hit = int(handle.results[handle.hits_at :].sum())
    device, value_bytes = rank.runner.measure.device, rank.dtype.itemsize
    cache_bytes = rank.runner.measure.roofline.cache_bytes
    least = floors(rank.model_config, handle.work, experts_hit, value_bytes, device, cache_bytes)
    return table(what, found, least, results)


def _launches(profiler: profile) -> list[Launch]:
    """In order of their ends."""
    launches = [
        Launch(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == "CUDA"
    ]
    return sorted(launches, key=lambda launch: launch.end)


if __name__ == "__main__":
    main()
