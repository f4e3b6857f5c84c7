"""Service: streamed requests against a server, at a concurrency or an open-loop rate.

``python -m benchmarks.serve [--requests 64] [--concurrency 20 | --rate 5] [--json FILE]
[-- SERVE_FLAGS]``

Prompts are the demo's held-out questions where the server has a chat template, else random tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import random
import sys
import time
from collections import Counter

from benchmarks import report
from benchmarks.server import Server, add_flags, running
from demo.data import heldout
from switchyard.client import AsyncClient, AsyncStream, ServerError


@dataclasses.dataclass(slots=True)
class Record:
    """What one request saw, in seconds; ``error`` is a status name."""

    ttft: float = 0.0
    gaps: list[float] = dataclasses.field(default_factory=list)
    total: float = 0.0
    tokens: int = 0
    error: str | None = None


def main() -> None:
    """Run the requests and print one row; exits non-zero when one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=20, help="requests open at once")
    parser.add_argument("--rate", type=float, help="arrivals a second instead (Poisson)")
    parser.add_argument("--input-len", type=int, nargs=2, default=[32, 128], help="random prompts")
    parser.add_argument("--max-new-tokens", type=int, nargs=2, default=[16, 64])
    parser.add_argument("--random-tokens", action="store_true", help="random prompts in any case")
    parser.add_argument("--seed", type=int, default=0)
    report.add_flags(parser)
    add_flags(parser)
    flags = parser.parse_args()
    with running(flags) as server:
        began = time.perf_counter()
        records = asyncio.run(_run(flags, server))
        row = _row(records, time.perf_counter() - began)
        errors = Counter(record.error for record in records if record.error)
        report.show(f"Service: {server.describe()}", [row], flags.json, errors=dict(errors))
    sys.exit(1 if errors else 0)


async def _run(flags: argparse.Namespace, server: Server) -> list[Record]:
    draw = random.Random(flags.seed)
    chat = server.model.has_chat_template and not flags.random_tokens
    questions = [question for _, question, _ in heldout(20, flags.seed)] if chat else []
    gate = asyncio.Semaphore(flags.concurrency if not flags.rate else flags.requests)
    with report.progress() as bar:
        task = bar.add_task("requests", total=flags.requests)
        async with AsyncClient(server.address, api_key=flags.api_key) as client:

            async def one(start_after: float, seed: int) -> Record:
                own = random.Random(seed)
                await asyncio.sleep(start_after)
                async with gate:
                    record = await _request(_open(client, own, questions, flags, server))
                bar.advance(task)
                return record

            delay, jobs = 0.0, []
            for _ in range(flags.requests):
                jobs.append(one(delay, draw.getrandbits(32)))
                delay += draw.expovariate(flags.rate) if flags.rate else 0.0
            return await asyncio.gather(*jobs)


def _open(
    client: AsyncClient,
    draw: random.Random,
    questions: list[str],
    flags: argparse.Namespace,
    server: Server,
) -> AsyncStream:
    most = draw.randint(*flags.max_new_tokens)
    if questions:
        messages = [{"role": "user", "content": draw.choice(questions)}]
        return client.chat(messages, max_new_tokens=most)
    length = draw.randint(*flags.input_len)
    prompt = [draw.randrange(server.model.vocab_size) for _ in range(length)]
    return client.generate(
        prompt, max_new_tokens=most, ignore_eos=True, temperature=1.0, skip_detokenize=True
    )


async def _request(stream: AsyncStream) -> Record:
    record = Record()
    began = last = time.perf_counter()
    try:
        async with stream:
            async for delta in stream:
                now = time.perf_counter()
                if record.tokens:
                    # A message of several tokens is one gap a token, of equal share.
                    share = (now - last) / max(1, len(delta.token_ids))
                    record.gaps += [share] * len(delta.token_ids)
                else:
                    record.ttft = now - began
                record.tokens += len(delta.token_ids)
                last = now
    except ServerError as error:
        record.error = error.code.name
    record.total = time.perf_counter() - began
    return record


def _row(records: list[Record], seconds: float) -> report.Row:
    done = [record for record in records if record.error is None]
    ttft = [1e3 * record.ttft for record in done]
    gaps = [1e3 * gap for record in done for gap in record.gaps]
    row: report.Row = {
        "successes": f"{len(done)}/{len(records)}",
        "req/s": len(done) / seconds,
        "out tok/s": sum(record.tokens for record in done) / seconds,
    }
    for name, values in (("TTFT", ttft), ("ITL", gaps)):
        for share in (0.5, 0.9, 0.99):
            row[f"{name} p{share * 100:.0f} ms"] = report.percentile(values, share)
    row["e2e p50 ms"] = report.percentile([1e3 * record.total for record in done], 0.5)
    return row


if __name__ == "__main__":
    main()
