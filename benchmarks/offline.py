"""Offline performance: batch × input × output sweep through a served model.

``python -m benchmarks.offline [--model M] [--batch-sizes 1 8] [--input-lens 128] [--output-lens 64]
[--repeat 3] [--json FILE] [-- SERVE_FLAGS]``

For each combination a whole batch of random token prompts is sent at once, over real gRPC streams,
sampling at temperature 1 so that tokens and experts differ. TPOT = (t(n + 1 tokens) − t(1 token)) /
n for the batch; prefill is the run of one token. Medians of --repeat runs.

That TPOT holds what prefill and decode share. Beside it: "step", the median time between two tokens
of a sequence while all of the batch decode, as the client sees it; and what the server measured of
its decode-only steps over all runs, those at the end of a run included in which some sequences have
ended: mean device time, the share of it that is the floor for the experts really hit, and the mean
time the device stood still before a step.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import random
import statistics
import time
from pathlib import Path

from benchmarks import report
from benchmarks.server import Server, add_flags, running
from frontend.model_folder import resolve_model
from moe.base.parallel import ParallelConfig
from switchyard.client import AsyncClient
from switchyard.v1 import inference_pb2 as pb
from workers.config_json.model_config import ModelConfig
from workers.scale_blocks import with_quantization
from workers.step.roofline import Roofline, device_ceilings


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One batch: seconds until its last token, to the median first token, and of a step in which
    all decode; None when there was none."""

    whole: float
    ttft: float
    step: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """What one row is about."""

    batch: int
    input_len: int
    output_len: int


def main() -> None:
    """Run the sweep and print one row a combination."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline", description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input-lens", type=int, nargs="+", default=[128])
    parser.add_argument("--output-lens", type=int, nargs="+", default=[64])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    report.add_flags(parser)
    add_flags(parser)
    flags = parser.parse_args()
    # Prompts differ from run to run, and with a prefix cache even random ones could repeat.
    with running(flags, ["--no-prefix-cache"]) as server:
        rows = asyncio.run(_sweep(flags, server))
        report.show(
            f"Offline: {server.describe()}", rows, flags.json, startup_s=server.startup_seconds
        )


async def _sweep(flags: argparse.Namespace, server: Server) -> list[report.Row]:
    roofline = _roofline(flags.model, server.info)
    cases = [
        Case(batch, input_len, output_len)
        for input_len, output_len, batch in itertools.product(
            flags.input_lens, flags.output_lens, flags.batch_sizes
        )
    ]
    rows = []
    draw = random.Random(flags.seed)
    with report.progress() as bar:
        task = bar.add_task("runs", total=len(cases) * (flags.repeat + 1))
        async with AsyncClient(server.address, api_key=flags.api_key) as client:
            for case in cases:
                runs = []
                before = pb.StepTotals()
                for number in range(flags.repeat + 1):  # the first is a warm-up
                    if number == 1:
                        before = await _decode_steps(client)
                    prompts = _prompts(draw, case, server.model.vocab_size)
                    first = await _batch(client, prompts, 1)
                    # Other prompts: a running server may keep the first ones' KV.
                    prompts = _prompts(draw, case, server.model.vocab_size)
                    runs.append((first, await _batch(client, prompts, case.output_len + 1)))
                    bar.advance(task)
                row = _row(case, runs[1:]) | _live(before, await _decode_steps(client))
                rows.append(row | _floors(case, row, roofline, server.info))
                report.note(bar, rows[-1])
    return rows


async def _decode_steps(client: AsyncClient) -> pb.StepTotals:
    """What the server's decode-only steps add up to so far."""
    load: pb.GetLoadResponse = await client.stub.GetLoad(pb.GetLoadRequest())
    return load.decode_steps


def _roofline(model: str | None, info: pb.GetServerInfoResponse) -> Roofline | None:
    """What the floor is computed from, when the folder is at hand."""
    config = _model_config(model)
    if config is None:
        return None
    parallel = ParallelConfig(
        tp=info.tensor_parallel_size,
        dp=info.data_parallel_size,
        ep=info.expert_parallel_size,
        backend=info.moe_ep_backend,
        reason="the server says so",
    )
    quantize = info.quantization.partition(" ")[0] or "auto"  # "fp8 128x128", "int4 by 128"
    config = with_quantization(config, quantize, parallel, made_up=False)
    return Roofline.of_layout(
        config, parallel, dtype=info.dtype, kv_cache_dtype=info.kv_cache_dtype
    )


def _model_config(model: str | None) -> ModelConfig | None:
    with contextlib.suppress(ValueError):
        return ModelConfig.from_folder(Path(resolve_model(model)))
    return None


def _prompts(draw: random.Random, case: Case, vocab: int) -> list[list[int]]:
    return [[draw.randrange(vocab) for _ in range(case.input_len)] for _ in range(case.batch)]


async def _batch(client: AsyncClient, prompts: list[list[int]], num_tokens: int) -> Run:
    """Send all prompts at once, for ``num_tokens`` tokens each."""
    began = time.perf_counter()

    async def one(prompt: list[int]) -> list[float]:
        """When each token came."""
        times: list[float] = []
        async with client.generate(
            prompt,
            max_new_tokens=num_tokens,
            ignore_eos=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            skip_detokenize=True,
        ) as stream:
            async for delta in stream:
                times += [time.perf_counter()] * len(delta.token_ids)
        if len(times) != num_tokens:
            raise RuntimeError(f"asked for {num_tokens} tokens, got {len(times)}")
        return times

    arrivals = await asyncio.gather(*(one(prompt) for prompt in prompts))
    whole = time.perf_counter() - began
    ttft = statistics.median(times[0] - began for times in arrivals)
    return Run(whole, ttft, step_seconds(arrivals))


def step_seconds(arrivals: list[list[float]]) -> float | None:
    """Median time between two tokens of a sequence while all of them decode.

    Args:
        arrivals: for each sequence when each of its tokens came, ascending. Tokens that came
            together count as evenly spread since the ones before.

    Returns:
        None when there was no such time.
    """
    begin, end = max(times[0] for times in arrivals), min(times[-1] for times in arrivals)
    intervals: list[float] = []
    for times in arrivals:
        before = None
        for now, together in itertools.groupby(t for t in times if begin <= t <= end):
            count = len(list(together))
            if before is not None:
                intervals += [(now - before) / count] * count
            before = now
    return statistics.median(intervals) if intervals else None


def _row(case: Case, runs: list[tuple[Run, Run]]) -> report.Row:
    """What the client saw, of pairs of a run of one token and one of all."""
    prefill = statistics.median(first.whole for first, _ in runs)
    tpots = [(run.whole - first.whole) / case.output_len for first, run in runs]
    tpot = statistics.median(tpots)
    steps = [run.step for _, run in runs if run.step is not None]
    return {
        "batch": case.batch,
        "input": case.input_len,
        "output": case.output_len,
        "prefill tok/s": case.batch * case.input_len / prefill,
        "TTFT ms": 1e3 * statistics.median(run.ttft for _, run in runs),
        "TPOT ms": 1e3 * tpot,
        "min–max": f"{1e3 * min(tpots):.3g}–{1e3 * max(tpots):.3g}",
        "step ms": 1e3 * statistics.median(steps) if steps else None,
        "out tok/s": case.batch / tpot,
    }


def _live(before: pb.StepTotals, after: pb.StepTotals) -> report.Row:
    """What the server measured in between; None for what its workers do not measure, which count
    no bytes then."""
    steps = after.steps - before.steps
    device = after.device_seconds - before.device_seconds
    least = after.floor_seconds - before.floor_seconds
    idle = after.idle_seconds - before.idle_seconds
    return {
        "device ms": 1e3 * device / steps if device > 0 else None,
        "live share %": 100 * least / device if least > 0 else None,
        "idle ms": 1e3 * idle / steps if after.bytes_moved > before.bytes_moved else None,
    }


def _floors(
    case: Case, row: report.Row, roofline: Roofline | None, info: pb.GetServerInfoResponse
) -> report.Row:
    """The floors of even routing, and what shares of the row's times they are."""
    device = device_ceilings(info.device, info.dtype)
    if roofline is None or device is None:
        return {}
    context = case.input_len + case.output_len / 2
    step = roofline.decode(batch=case.batch, context=context).floor_seconds(device)
    prefill = roofline.prefill(prompts=case.batch, length=case.input_len).floor_seconds(device)
    tokens_per_second = case.batch * case.input_len / prefill
    return {
        "floor ms": 1e3 * step,
        "share %": 100 * 1e3 * step / row["TPOT ms"],
        "prefill share %": 100 * row["prefill tok/s"] / tokens_per_second,
    }


if __name__ == "__main__":
    main()
