"""Offline performance: batch × input × output sweep through a served model.

``python -m benchmarks.offline [--model M] [--batch-sizes 1 8] [--input-lens 128] [--output-lens 64]
[--repeat 3] [--json FILE] [-- SERVE_FLAGS]``

For each combination a whole batch of random token prompts is sent at once, over real gRPC streams,
sampling at temperature 1 so that tokens and experts differ. TPOT = (t(n + 1 tokens) − t(1 token)) /
n for the batch; prefill is the run of one token. Medians of --repeat runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import statistics
import time
from pathlib import Path

from benchmarks import floor, report
from benchmarks.server import Server, add_flags, running
from frontend.model_folder import resolve_model
from switchyard.client import AsyncClient
from workers.config import ModelConfig


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
    config = _model_config(flags.model)
    cases = list(itertools.product(flags.input_lens, flags.output_lens, flags.batch_sizes))
    rows = []
    draw = random.Random(flags.seed)
    with report.progress() as bar:
        task = bar.add_task("runs", total=len(cases) * (flags.repeat + 1))
        async with AsyncClient(server.address) as client:
            for input_len, output_len, batch in cases:
                runs = []
                for _ in range(flags.repeat + 1):  # the first is a warm-up
                    prompts = _prompts(draw, batch, input_len, server.model.vocab_size)
                    first, _ = await _batch(client, prompts, 1)
                    # Other prompts: a running server may keep the first ones' KV.
                    prompts = _prompts(draw, batch, input_len, server.model.vocab_size)
                    whole, ttft = await _batch(client, prompts, output_len + 1)
                    runs.append((first, (whole - first) / output_len, ttft))
                    bar.advance(task)
                rows.append(_row(batch, input_len, output_len, runs[1:], config, server))
    return rows


def _model_config(model: str | None) -> ModelConfig | None:
    """The shapes the floor is computed from, when the folder is at hand."""
    with contextlib.suppress(ValueError):
        return ModelConfig.from_folder(Path(resolve_model(model)))
    return None


def _prompts(draw: random.Random, batch: int, length: int, vocab: int) -> list[list[int]]:
    return [[draw.randrange(vocab) for _ in range(length)] for _ in range(batch)]


async def _batch(
    client: AsyncClient, prompts: list[list[int]], num_tokens: int
) -> tuple[float, float]:
    """Send all prompts at once; seconds until the last token of all, and the median first token."""
    began = time.perf_counter()

    async def one(prompt: list[int]) -> float:
        first = 0.0
        count = 0
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
                first = first or time.perf_counter()
                count += len(delta.token_ids)
        if count != num_tokens:
            raise RuntimeError(f"asked for {num_tokens} tokens, got {count}")
        return first - began

    firsts = await asyncio.gather(*(one(prompt) for prompt in prompts))
    return time.perf_counter() - began, statistics.median(firsts)


def _row(
    batch: int,
    input_len: int,
    output_len: int,
    runs: list[tuple[float, float, float]],
    config: ModelConfig | None,
    server: Server,
) -> report.Row:
    prefill, tpot, ttft = (statistics.median(column) for column in zip(*runs, strict=True))
    row: report.Row = {
        "batch": batch,
        "input": input_len,
        "output": output_len,
        "prefill tok/s": batch * input_len / prefill,
        "TTFT ms": 1e3 * ttft,
        "TPOT ms": 1e3 * tpot,
        "min–max": "–".join(
            f"{1e3 * edge:.3g}" for edge in (min(r[1] for r in runs), max(r[1] for r in runs))
        ),
        "out tok/s": batch / tpot,
    }
    device = floor.device_ceilings(server.info.device)
    if config is not None and device is not None:
        shared = {"dtype": server.info.dtype, "ranks": server.info.world_size}
        context = input_len + output_len / 2
        least = floor.decode_seconds(config, device, batch=batch, context=context, **shared)
        least_prefill = floor.prefill_seconds(
            config, device, prompts=batch, length=input_len, **shared
        )
        row |= {
            "floor ms": 1e3 * least,
            "share %": 100 * least / tpot,
            "prefill share %": 100 * least_prefill / prefill,
        }
    return row


if __name__ == "__main__":
    main()
