"""Mixed traffic and kills on one server for long: what leaks, and whether anything is lost.

    make soak        (30 minutes)
    python -m tests.faults.soak --minutes 3 --seconds-between-kills 6

Every request is of a set whose answers are known from a quiet run. Each is let finish, cancelled,
aborted, refused or expired at random, while ranks are killed and stopped. At the end the processes'
memory, descriptors, threads and tasks are held against their numbers after the first fifth.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import openai

from switchyard.client import AsyncClient, ServerError
from tests.faults.kills import Times, Watch
from tests.faults.streams import Answer, Asked, answer, answers, mixed_requests
from tests.faults.tool_calls import Called, call_tools, open_client, tool_calls
from tests.processes import descendants, is_alive, send
from tests.server import Server

CONCURRENCY, CONCURRENT_CALLS = 24, 3
NUM_KNOWN, NUM_KNOWN_CALLS = 42, 4
FLAGS = (
    "--tp", "2", "--step-timeout", "10", "--max-batch-size", "16", "--max-queued-requests", "16"
)  # fmt: skip
MOST_MB_PER_1000_REQUESTS = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the long-lived processes hold, after so many requests."""

    requests: int
    memory_mb: float
    files: int
    threads: int
    tasks: int
    shared_memory_files: int


@dataclasses.dataclass(slots=True)
class Tally:
    """What has happened."""

    ended: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)
    replays: int = 0
    times: list[Times] = dataclasses.field(default_factory=list)
    samples: list[Sample] = dataclasses.field(default_factory=list)


def sample(server: Server, tally: Tally) -> Sample:
    """The frontend and the launcher: ranks are new after every kill."""
    memory = files = threads = 0
    for pid in (server.frontend(), server.launcher()):
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        memory += int(fields["VmRSS"].split()[0])
        threads += int(fields["Threads"])
        files += len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(
        requests=tally.ended.total(),
        memory_mb=memory / 1024,
        files=files,
        threads=threads,
        tasks=num_tasks(server),
        shared_memory_files=len(os.listdir("/dev/shm")),
    )


def num_tasks(server: Server) -> int:
    """Tasks of the frontend's event loop; those of live requests are some of them."""
    with urllib.request.urlopen(f"http://{server.http_address}/metrics") as page:
        [line] = [line for line in page if line.startswith(b"switchyard:tasks{")]
    return int(float(line.split()[-1]))


async def one_request(
    client: AsyncClient, rng: random.Random, known: list[tuple[Asked, Answer]], tally: Tally
) -> None:
    """One request of a random fate."""
    asked, expected = rng.choice(known)
    fate = rng.choices(["finish", "cancel", "abort", "refuse", "expire"], [6, 1, 1, 1, 1])[0]
    try:
        if fate == "finish":
            got = await answer(client, asked)
            tally.replays += got.replays
            if got.outcome() != expected.outcome():
                tally.wrong.append(f"{asked} gave {got}, expected {expected}")
        else:
            await _end_early(client, rng, asked, fate)
        tally.ended[fate] += 1
    except ServerError as error:
        tally.ended[error.code.name] += 1
        wanted = {"refuse": "INVALID_ARGUMENT", "expire": "DEADLINE_EXCEEDED"}.get(fate)
        if error.code.name not in (wanted, "RESOURCE_EXHAUSTED"):
            tally.wrong.append(f"{fate}: {error!r}")
        if error.retry_after is not None:
            await asyncio.sleep(0.2)


async def _end_early(client: AsyncClient, rng: random.Random, asked: Asked, fate: str) -> None:
    options = dict(asked.options)
    if fate == "refuse":
        options["top_p"] = 3.0
    if fate == "abort":
        options["request_id"] = f"soak-{rng.getrandbits(60)}"
    timeout = rng.uniform(0.001, 0.2) if fate == "expire" else None
    async with Asked(asked.prompt, options).stream(client, timeout=timeout) as stream:
        async for _ in stream:
            if fate == "cancel":
                return
            if fate == "abort":
                await client.abort(options["request_id"])


async def call_tools_again_and_again(
    server: Server, rng: random.Random, known: list[Called], tally: Tally, end: float
) -> None:
    """Over HTTP, by seeds whose calls are known."""
    async with open_client(server.http_address) as client:
        while time.monotonic() < end:
            seed = rng.randrange(len(known))
            try:
                called = await call_tools(client, seed)
            except openai.RateLimitError:
                tally.ended["RESOURCE_EXHAUSTED"] += 1
                await asyncio.sleep(0.2)
                continue
            tally.ended["call tools"] += 1
            if called != known[seed]:
                tally.wrong.append(f"seed {seed} called {called}, expected {known[seed]}")


async def kill_now_and_then(
    server: Server, watch: Watch, rng: random.Random, seconds: float, tally: Tally
) -> None:
    """A rank every so many seconds, one of six by SIGSTOP, until cancelled."""
    while True:
        await asyncio.sleep(rng.uniform(0.5, 1.5) * seconds)
        ranks = server.ranks()
        if len(ranks) < 2:
            continue  # a group that has just been lost, or is not whole yet
        killed = time.monotonic()
        number = signal.SIGSTOP if rng.random() < 1 / 6 else signal.SIGKILL
        send(ranks[rng.randrange(2)], number)
        noticed = await watch.until(False)
        ready = await watch.until(True)
        before = tally.ended.total()
        while tally.ended.total() == before:
            await asyncio.sleep(0.01)
        moving = time.monotonic()
        tally.times.append(
            Times(noticed=noticed - killed, ready=ready - killed, moving=moving - killed)
        )


async def run(server: Server, flags: argparse.Namespace) -> Tally:
    """Traffic and kills for as long as was asked for."""
    rng, tally = random.Random(flags.seed), Tally()
    requests = mixed_requests(flags.seed, NUM_KNOWN, max_new_tokens=48)
    known = []
    for begin in range(0, NUM_KNOWN, 8):
        part = requests[begin : begin + 8]
        known += list(zip(part, await answers(server.address, part), strict=True))
    known_calls = await tool_calls(server.http_address, range(NUM_KNOWN_CALLS))
    watch = Watch(server.address)
    await watch.until(True)
    end = time.monotonic() + 60 * flags.minutes

    async def client_loop(seed: int) -> None:
        own = random.Random(seed)
        async with AsyncClient(server.address) as client:
            while time.monotonic() < end:
                await one_request(client, own, known, tally)

    killer = asyncio.create_task(
        kill_now_and_then(server, watch, rng, flags.seconds_between_kills, tally)
    )
    clients = [asyncio.create_task(client_loop(rng.getrandbits(32))) for _ in range(CONCURRENCY)]
    clients += [
        asyncio.create_task(call_tools_again_and_again(server, rng, known_calls, tally, end))
        for _ in range(CONCURRENT_CALLS)
    ]
    while time.monotonic() < end:
        await asyncio.sleep(min(10.0, 6 * flags.minutes))
        tally.samples.append(await asyncio.to_thread(sample, server, tally))
        sys.stderr.write(f"{tally.samples[-1]} {dict(tally.ended)} {len(tally.times)} kills\n")
    await asyncio.gather(*clients)
    killer.cancel()
    await watch.close()
    return tally


def slope_mb_per_1000(samples: list[Sample]) -> float:
    """Memory over requests, after the first fifth, which fills caches."""
    steady = samples[len(samples) // 5 :]
    if len(steady) < 3:
        return 0.0
    line = statistics.linear_regression(
        [each.requests for each in steady], [each.memory_mb for each in steady]
    )
    return line.slope * 1000


def report(tally: Tally, orphans: int) -> dict[str, object]:
    """The figures of a run, and what is wrong with them."""
    samples, times = tally.samples, tally.times
    first, last = samples[len(samples) // 5], samples[-1]
    slope = slope_mb_per_1000(samples)
    problems = list(tally.wrong[:5])
    if slope > MOST_MB_PER_1000_REQUESTS:
        problems.append(f"memory grows by {slope:.2f} MB in 1,000 requests")
    for name, slack in (("files", 24), ("threads", 4), ("tasks", 60), ("shared_memory_files", 4)):
        if getattr(last, name) > getattr(first, name) + slack:
            problems.append(f"{name} went from {getattr(first, name)} to {getattr(last, name)}")
    if orphans:
        problems.append(f"{orphans} processes are left")
    return {
        "requests": tally.ended.total(),
        "ended": dict(tally.ended),
        "kills": len(times),
        "wrong": len(tally.wrong),
        "replays": tally.replays,
        "noticed_s": _spread([each.noticed for each in times]),
        "ready_s": _spread([each.ready for each in times]),
        "moving_s": _spread([each.moving for each in times]),
        "memory_mb_per_1000_requests": round(slope, 3),
        "first": dataclasses.asdict(first),
        "last": dataclasses.asdict(last),
        "orphans": orphans,
        "problems": problems,
    }


def _spread(values: list[float]) -> list[float]:
    """Median and largest."""
    return [round(statistics.median(values), 3), round(max(values), 3)] if values else []


def main() -> int:
    """Run, print the figures as JSON; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seconds-between-kills", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    allowed = ("--max-restarts", "100000")
    with tempfile.TemporaryDirectory() as folder:
        with Server(Path(folder), *FLAGS, *allowed, "--no-request-log") as server:
            everything = descendants(server.process.pid)
            tally = asyncio.run(run(server, flags))
            everything += descendants(server.process.pid)
        figures = report(tally, sum(is_alive(pid) for pid in everything))
        if figures["problems"]:
            sys.stderr.write(server.log[-4000:])
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
