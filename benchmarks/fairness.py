"""Fairness: what one key's flood does to the requests of another key.

``python -m benchmarks.fairness [--floods NAME …] [--requests 12] [-- SERVE_FLAG…]``

Key B sends one small request after the other, alone and beside each flood of key A, which stands
until B is answered. The server has few slots and a short queue, so that both are scarce.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import random
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from benchmarks import report, server
from switchyard.client import AsyncClient, ServerError

SLOTS, QUEUE = 8, 256
PROMPT, OUTPUT = 8, 16
SETTLE_SECONDS = 0.5
A, B = "a" * 32, "b" * 32


@dataclasses.dataclass(frozen=True, slots=True)
class Flood:
    """Requests that key A keeps under way.

    Attributes:
        at_once: requests; each is sent again when it ends.
        options: of each, beside its prompt.
    """

    at_once: int
    prompt: int = PROMPT
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


FLOODS = {
    "none": Flood(0),
    "64 × 8+16 tokens": Flood(64, options={"max_new_tokens": 16}),
    "64 prompts of 900": Flood(64, prompt=900, options={"max_new_tokens": 16}),
    "64 × 8+300 tokens": Flood(64, options={"max_new_tokens": 300}),
    "6 × 64 samples": Flood(6, options={"max_new_tokens": 16, "n": 64}),
    "16 × 64 samples": Flood(16, options={"max_new_tokens": 16, "n": 64}),
    "400 × 8+16 tokens": Flood(400, options={"max_new_tokens": 16}),
    "64 × 8+300, before others": Flood(64, options={"max_new_tokens": 300, "priority": -(2**31)}),
}


def _prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(3, 400) for _ in range(length)]


async def _flood(client: AsyncClient, flood: Flood, refusals: collections.Counter[str]) -> None:
    """Send one request after the other, until cancelled."""
    rng = random.Random(0)
    while True:
        try:
            prompt = _prompt(rng, flood.prompt)
            async with client.generate(prompt, ignore_eos=True, **flood.options) as stream:
                async for _ in stream:
                    pass
        except ServerError as error:
            refusals[error.reason or error.code.name] += 1
            await asyncio.sleep(error.retry_after or 0.1)


@contextlib.asynccontextmanager
async def flooding(address: str, flood: Flood) -> AsyncIterator[collections.Counter[str]]:
    """Keep a flood up; yields why its requests were refused, and how often."""
    refusals: collections.Counter[str] = collections.Counter()
    async with AsyncClient(address, api_key=A) as client:
        tasks = [asyncio.create_task(_flood(client, flood, refusals)) for _ in range(flood.at_once)]
        await asyncio.sleep(SETTLE_SECONDS)
        yield refusals
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure(address: str, name: str, num_requests: int) -> report.Row:
    """The row of one flood."""
    seconds, refused, rng = list[float](), 0, random.Random(1)
    async with flooding(address, FLOODS[name]) as refusals, AsyncClient(address, api_key=B) as b:
        for _ in range(num_requests):
            began = time.perf_counter()
            try:
                await b.complete(_prompt(rng, PROMPT), max_new_tokens=OUTPUT, ignore_eos=True)
                seconds.append(time.perf_counter() - began)
            except ServerError:
                refused += 1
    return {
        "key A": name,
        "A refused": ", ".join(f"{count} × {why}" for why, count in refusals.most_common()),
        "B answered": len(seconds),
        "B refused": refused,
        "B p50 ms": 1e3 * report.percentile(seconds, 0.5),
        "B max ms": 1e3 * max(seconds, default=float("nan")),
    }


async def _rows(address: str, names: list[str], num_requests: int) -> list[report.Row]:
    await measure(address, "none", num_requests)  # a warm-up
    return [await measure(address, name, num_requests) for name in names]


def main() -> None:
    """Print the table of floods."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fairness", description="Measure what a key's flood costs others."
    )
    parser.add_argument("--floods", nargs="+", default=list(FLOODS), choices=list(FLOODS))
    parser.add_argument("--requests", type=int, default=12, help="of key B, beside each flood")
    parser.add_argument("serve_args", nargs="*", metavar="-- SERVE_FLAG", help="of the server")
    report.add_flags(parser)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        keys.write_text(f"a:{A}\nb:{B}\n")
        keys.chmod(0o600)
        arguments = (
            "--tp", "1", "--no-request-log", "--api-key-file", str(keys),
            "--max-batch-size", str(SLOTS), "--max-queued-requests", str(QUEUE),
        )  # fmt: skip
        output = Path(folder) / "output"
        with server.Process(*arguments, *flags.serve_args, output=output) as process:
            process.wait_until_ready(300.0)
            rows = asyncio.run(_rows(process.address, flags.floods, flags.requests))
    report.show(f"the demo with {SLOTS} slots and a queue of {QUEUE}", rows, flags.json)


if __name__ == "__main__":
    main()
