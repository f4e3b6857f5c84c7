"""Hostile requests: what the worst that one caller can send does to the others.

``python -m benchmarks.hostile [--attacks NAME …] [--seconds 4] [--at-once 4] [-- SERVE_FLAG…]``

For a while, another process sends one kind of hostile request from as many threads as ``--at-once``
says. Meanwhile one connection checks health, and some streams of tokens run. The first row has no
attack. A gap is the longest time between two messages of a stream.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gzip
import http.client
import json
import multiprocessing
import multiprocessing.synchronize
import queue
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc

from benchmarks import report, server
from benchmarks.overload import check_health
from switchyard.client import AsyncClient

NUM_STREAMS, OUTPUT = 4, 1000
FLAGS = ("--tp", "1", "--max-batch-size", "16", "--no-request-log")
TIMEOUT_SECONDS = 60.0
_MIB = 1 << 20
_CHAT, _COMPLETE, _TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
_HELLO = [{"role": "user", "content": "x"}]
_WORDS = "It is not down on any map; true places never are. "


def _json(**body: Any) -> bytes:
    return json.dumps({"model": "demo", "max_tokens": 8, **body}).encode()


def _padded(value: str) -> bytes:
    """A request that is fine, but for 8 MiB of values in a field that nobody reads."""
    body = _json(messages=_HELLO)[:-1] + b', "ignored": ['
    return body + value.encode() * ((8 * _MIB - len(body) - 9) // len(value)) + b"0]}"


def _grammar(rules: str) -> bytes:
    return _json(messages=_HELLO, n=64, max_tokens=200, guided_grammar=rules)


# Paths and bodies over HTTP, of each attack.
HTTP_ATTACKS: Mapping[str, Callable[[], tuple[str, bytes]]] = {
    "prompt of 253 KiB English": lambda: (_COMPLETE, _json(prompt=_WORDS * 5080)),
    "prompt of 262,144 a": lambda: (_COMPLETE, _json(prompt="a" * 262_144)),
    "tokenize 1 MiB, with strings": lambda: (
        _TOKENIZE,
        _json(prompt=_WORDS * 20_900, return_token_strs=True),
    ),
    "8 MiB of [] that nobody reads": lambda: (_CHAT, _padded("[],")),
    "8 MiB of long numbers": lambda: (_CHAT, _padded("1" * 4000 + ",")),
    "8 MiB of short numbers": lambda: (_CHAT, _padded("1,")),
    "8 MiB of 280,000 messages": lambda: (
        _CHAT,
        _json(messages=[{"role": "user", "content": ""}] * 280_000),
    ),
    "20,000 lists, 300,000 numbers": lambda: (
        _CHAT,
        _json(messages=_HELLO, ignored=[[1] * 14] * 19_000),
    ),
    "a gzip bomb": lambda: (_CHAT, gzip.compress(_padded(" "), 1)),
    "1,000 messages of 200 characters": lambda: (
        _CHAT,
        _json(messages=[{"role": "user", "content": _WORDS * 4}] * 1000),
    ),
    "64 samples, 20 alternatives, whole": lambda: (
        _CHAT,
        _json(messages=_HELLO, n=64, max_tokens=400, logprobs=True, top_logprobs=20),
    ),
    "scoring of 16 prompts, 20 alternatives": lambda: (
        _COMPLETE,
        _json(prompt=[_WORDS * 15] * 16, echo=True, logprobs=20, max_tokens=1),
    ),
    "an ambiguous grammar, 64 samples": lambda: (
        _CHAT,
        _grammar('start: s\ns: s s s | s s | "a" | "b" | "c"'),
    ),
    "a regex of a million repetitions": lambda: (
        _CHAT,
        _json(messages=_HELLO, guided_regex="a{1000000}"),
    ),
    "a grammar that takes long to compile": lambda: (
        _CHAT,
        _json(messages=_HELLO, guided_regex="(a|b)*a(a|b){14}[a-z]{0,900}"),
    ),
}
# Methods and serialized messages over gRPC.
GRPC_ATTACKS: Mapping[str, tuple[str, bytes]] = {
    "8 MiB of empty gRPC messages": ("Chat", b"\n\x00" * (4 * _MIB - 8)),
}
NAMES = ["none", *HTTP_ATTACKS, *GRPC_ATTACKS]


def attack(
    name: str,
    addresses: tuple[str, str],
    at_once: int,
    go: multiprocessing.synchronize.Event,
    stop: multiprocessing.synchronize.Event,
    ends: multiprocessing.Queue[str],
) -> None:
    """Send one kind of request over and over; tells each status. The body of a process.

    Args:
        addresses: of HTTP and of gRPC.
        go: is waited for; the first thing told says that it is.
    """
    if name in HTTP_ATTACKS:
        send, request = _over_http, HTTP_ATTACKS[name]()
    else:
        send, request = _over_grpc, GRPC_ATTACKS[name]
    ends.put("ready")
    go.wait()
    threads = [
        threading.Thread(target=send, args=(*request, addresses, stop, ends))
        for _ in range(at_once)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _over_http(path: str, body: bytes, addresses: tuple[str, str], stop: Any, ends: Any) -> None:
    headers = {"content-type": "application/json"}
    if body.startswith(b"\x1f\x8b"):
        headers["content-encoding"] = "gzip"
    while not stop.is_set():
        connection = http.client.HTTPConnection(addresses[0], timeout=TIMEOUT_SECONDS)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read()
            ends.put(str(answer.status))
        except OSError as error:
            ends.put(type(error).__name__)
        finally:
            connection.close()


def _over_grpc(
    method: str, message: bytes, addresses: tuple[str, str], stop: Any, ends: Any
) -> None:
    with grpc.insecure_channel(addresses[1]) as channel:
        call = channel.unary_stream(f"/switchyard.v1.InferenceService/{method}")
        while not stop.is_set():
            try:
                for _ in call(message, timeout=TIMEOUT_SECONDS):
                    pass
                ends.put("OK")
            except grpc.RpcError as error:
                ends.put(error.code().name)


@dataclasses.dataclass(slots=True)
class Seen:
    """What others saw: seconds of each health check, and between messages of each stream."""

    health: list[float] = dataclasses.field(default_factory=list)
    gaps: list[float] = dataclasses.field(default_factory=list)


async def _stream(client: AsyncClient, gaps: list[float], begun: asyncio.Barrier) -> None:
    """Read one stream after the other, until cancelled."""
    async with client.generate([5, 6, 7], max_new_tokens=OUTPUT, ignore_eos=True) as stream:
        last = None
        async for _ in stream:
            now = time.perf_counter()
            if last is None:
                await begun.wait()
            else:
                gaps.append(now - last)
            last = time.perf_counter()
    raise RuntimeError(f"a stream ended after {OUTPUT} tokens; watch for fewer seconds")


async def watch(process: server.Process, seconds: float, begin: Callable[[], None]) -> Seen:
    """Watch a server for a while, once its streams are under way and ``begin`` was called."""
    seen, begun = Seen(), asyncio.Barrier(NUM_STREAMS + 1)
    async with AsyncClient(process.address) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(_stream(client, seen.gaps, begun)) for _ in range(NUM_STREAMS)]
        await begun.wait()
        begin()
        tasks.append(group.create_task(check_health(process.address, seen.health)))
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
    return seen


def measure(process: server.Process, name: str, seconds: float, at_once: int) -> report.Row:
    """The row of one attack."""
    spawning = multiprocessing.get_context("spawn")
    go, stop, ends = spawning.Event(), spawning.Event(), spawning.Queue()
    addresses = process.http_address, process.address
    attacker = spawning.Process(target=attack, args=(name, addresses, at_once, go, stop, ends))
    if name != "none":
        attacker.start()
        ends.get()
    try:
        seen = asyncio.run(watch(process, seconds, go.set))
    finally:
        stop.set()
    counts: Counter[str] = Counter()
    while attacker.is_alive() or not ends.empty():
        with contextlib.suppress(queue.Empty):
            counts[ends.get(timeout=0.1)] += 1
    return {
        "attack": name,
        "answers": ", ".join(f"{count} × {end}" for end, count in counts.most_common()),
        "checks": len(seen.health),
        "health p50 ms": 1e3 * report.percentile(seen.health, 0.5),
        "health p99 ms": 1e3 * report.percentile(seen.health, 0.99),
        "health max ms": 1e3 * max(seen.health),
        "gap p50 ms": 1e3 * report.percentile(seen.gaps, 0.5),
        "longest gap ms": 1e3 * max(seen.gaps, default=float("nan")),
    }


def main() -> None:
    """Print the table of attacks."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hostile", description="Measure what hostile requests hold up."
    )
    parser.add_argument("--attacks", nargs="+", default=NAMES, metavar="NAME", choices=NAMES)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each attack")
    parser.add_argument("--at-once", type=int, default=4, help="hostile requests at a time")
    parser.add_argument("serve_args", nargs="*", metavar="-- SERVE_FLAG", help="of the server")
    report.add_flags(parser)
    flags = parser.parse_args()
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        server.Process(*FLAGS, *flags.serve_args, output=Path(folder) / "output") as process,
        report.progress() as progress,
    ):
        process.wait_until_ready(300.0)
        for name in progress.track(flags.attacks):
            rows.append(measure(process, name, flags.seconds, flags.at_once))
    title = f"{flags.at_once} hostile requests at a time beside {NUM_STREAMS} streams of the demo"
    report.show(title, rows, flags.json)


if __name__ == "__main__":
    main()
