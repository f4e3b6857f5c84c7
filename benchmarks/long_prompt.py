"""What a long prompt does to the streams beside it: their inter-token times before and during it.

    python -m benchmarks.long_prompt --model FOLDER [--streams 64] [--prompt 30000] -- SERVE_FLAGS

All streams decode when the long prompt arrives. A gap is the time between two messages of a stream;
gaps of all streams are taken together, those before the prompt was sent and those until its first
token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time

from rich.console import Console
from rich.table import Table

from benchmarks import server as servers
from switchyard.client import AsyncClient

GOAL = 2.0


class Gaps:
    """Arrivals of all streams' messages."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, float]] = []  # when, and how long after the one before
        self._grew = asyncio.Event()

    async def read(self, client: AsyncClient, prompt: list[int], num_tokens: int) -> None:
        """One stream to its end."""
        options = {"ignore_eos": True, "skip_detokenize": True, "max_new_tokens": num_tokens}
        before = 0.0
        async with client.generate(prompt, **options) as stream:  # type: ignore[arg-type]
            async for _ in stream:
                now = time.perf_counter()
                if before:
                    self.arrivals.append((now, now - before))
                    self._grew.set()
                before = now

    async def reach(self, num_arrivals: int) -> None:
        """Wait until so many messages have come."""
        while len(self.arrivals) < num_arrivals:
            await self._grew.wait()
            self._grew.clear()

    def between(self, begin: float, end: float) -> list[float]:
        """Gaps that ended in a span, in milliseconds, ascending."""
        return sorted(gap * 1e3 for when, gap in self.arrivals if begin < when <= end)


async def measure(
    client: AsyncClient, vocab: int, draw: random.Random, flags: argparse.Namespace
) -> dict[str, float]:
    """Percentiles before and during one long prompt, and its own time to the first token."""

    def prompt(length: int) -> list[int]:
        return [draw.randrange(vocab) for _ in range(length)]

    gaps = Gaps()
    streams = [
        asyncio.create_task(gaps.read(client, prompt(flags.input_len), flags.output_len))
        for _ in range(flags.streams)
    ]
    await gaps.reach(flags.streams * 100)
    calm_from = time.perf_counter()
    await asyncio.sleep(flags.calm_seconds)
    sent = time.perf_counter()
    async with client.generate(prompt(flags.prompt), max_new_tokens=1, ignore_eos=True) as stream:
        async for _ in stream:
            pass
    first = time.perf_counter()
    assert not any(stream.done() for stream in streams), "raise --output-len: streams have ended"
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    calm, during = gaps.between(calm_from, sent), gaps.between(sent, first)
    before_p99, during_p99 = (statistics.quantiles(each, n=100)[98] for each in (calm, during))
    return {
        "p50 before": statistics.median(calm),
        "p99 before": before_p99,
        "p50 during": statistics.median(during),
        "p99 during": during_p99,
        "worst during": during[-1],
        "p99 ratio": during_p99 / before_p99,
        "first token of it": (first - sent) * 1e3,
    }


async def run(flags: argparse.Namespace, server: servers.Server) -> list[dict[str, float]]:
    """Repeated; what the first run teaches the server of its steps is in the others."""
    draw, vocab = random.Random(flags.seed), server.model.vocab_size
    async with AsyncClient(server.address, api_key=flags.api_key) as client:
        return [await measure(client, vocab, draw, flags) for _ in range(flags.repeat)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=1000)
    parser.add_argument("--prompt", type=int, default=30_000, help="tokens of the long prompt")
    parser.add_argument("--calm-seconds", type=float, default=2.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    servers.add_flags(parser)
    flags = parser.parse_args()
    with servers.running(flags) as server:
        rows = asyncio.run(run(flags, server))
        title = f"{server.describe()}: {flags.streams} streams, a prompt of {flags.prompt} tokens"
    table = Table(title=f"{title}; ms; goal: p99 ratio ≤ {GOAL:g}")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" for value in row.values()))
    Console(width=160).print(table)
    if flags.json:
        with open(flags.json, "w", encoding="utf-8") as file:
            json.dump({"title": title, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
