"""The request log: what a line says, that it stops nobody, and that no prompt is in it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from pathlib import Path

import grpc
import pytest

from frontend.api.auth import ApiKeys
from frontend.api.grpc.server import GrpcServer
from frontend.errors import Code, RequestError
from frontend.observability.metrics import Metrics
from frontend.observability.request_log import RequestLog
from frontend.records import Caller
from frontend.service.service import Service
from switchyard.client import AsyncClient, ServerError
from tests.frontend.fakes import FakeEngine, backend
from tests.frontend.records import record, refusal
from tests.waiting import wait_until

SECRET = "xyzzy-nobody-may-read-this-in-a-log"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log"


def written(file: Path, *entries: object) -> list[dict[str, object]]:
    with file.open("wb") as stream:
        log = RequestLog(stream.fileno())
        for entry in entries:
            log.request_ended(entry)  # type: ignore[arg-type]
        log.close()
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_says_who_asked_what_came_of_it_and_how_long_it_took(file: Path) -> None:
    now = time.monotonic()
    times = {"arrived": now - 8, "admitted": now - 7, "first_token": now - 5, "finished": now}
    [line] = written(file, record(**times))
    stamp = str(line.pop("time"))
    assert abs(time.mktime(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
               - time.time()) < 5  # fmt: skip
    assert stamp.endswith("Z")
    assert line == {
        "request_id": "r-1", "key": "alice", "peer": "ipv4:192.0.2.1:5", "method": "Chat",
        "code": "OK", "reason": "", "finish": "STOP", "prompt_tokens": 12, "cached_tokens": 5,
        "completion_tokens": 9, "resumed_tokens": 0, "queue_ms": 1000.0, "ttft_ms": 3000.0,
        "e2e_ms": 8000.0, "preemptions": 2, "replays": 1,
    }  # fmt: skip


def test_times_that_never_came_are_null_and_all_lines_have_the_same_fields(file: Path) -> None:
    first, second = written(file, record(), refusal())
    assert first.keys() == second.keys()
    assert (second["queue_ms"], second["ttft_ms"], second["e2e_ms"]) == (None, None, 1.0)
    assert (second["code"], second["reason"]) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")


def test_a_line_for_people_is_short(file: Path) -> None:
    with file.open("wb") as stream:
        log = RequestLog(stream.fileno(), as_text=True)
        for entry in (record(), refusal(), record(cached_tokens=0, replays=0, caller=Caller())):
            log.request_ended(entry)
        log.close()
    lines = file.read_text().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    assert [line.partition(" ")[2] for line in lines] == [
        "Chat OK STOP, 12 + 9 tokens (5 cached), first after 3.000 s, 8.000 s, replays: 1, alice",
        "Chat RESOURCE_EXHAUSTED QUEUE_FULL, 12 + 0 tokens, 0.001 s, alice",
        "Chat OK STOP, 12 + 9 tokens, first after 3.000 s, 8.000 s",
    ]


def test_a_stuck_reader_stops_nobody_and_what_was_dropped_is_told() -> None:
    reader, writer = os.pipe()
    log = RequestLog(writer, max_waiting=8)
    try:
        for _ in range(3000):
            log.request_ended(record())  # a write to the full pipe would wait for ever
        text = b""
        os.set_blocking(reader, False)
        log.request_ended(record())

        def told() -> bool:
            nonlocal text
            try:
                text += os.read(reader, 1 << 16)
            except BlockingIOError:
                log.request_ended(record())
            return b"dropped_lines" in text

        wait_until(told)
        lines = [json.loads(line) for line in text.splitlines() if line.endswith(b"}")]
        assert sum(line.get("dropped_lines", 0) for line in lines) > 1000
    finally:
        os.close(reader)
        log.close()
        os.close(writer)


def test_a_reader_that_is_gone_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = RequestLog(writer)
    log.request_ended(record())
    assert log.close(5)
    os.close(writer)


def test_handing_over_a_record_is_cheap(file: Path) -> None:
    with file.open("wb") as stream:
        log = RequestLog(stream.fileno(), max_waiting=100_000)
        one = record()
        seconds = []
        for _ in range(20):
            start = time.thread_time()
            for _ in range(100):
                log.request_ended(one)
            seconds.append((time.thread_time() - start) / 100)
        log.close(10)
    assert min(seconds) < 100e-6


async def test_no_word_of_a_prompt_or_an_answer_is_logged_or_sent_back(
    file: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Requests that end well, are refused for each part of them, or hit a bug."""
    caplog.set_level(logging.DEBUG)
    with file.open("wb") as stream:
        log, metrics = RequestLog(stream.fileno()), Metrics("fake")
        engine, service = FakeEngine(), Service(model="fake", version="0", observers=(log, metrics))
        service.open(backend(engine))
        server = GrpcServer(service, "127.0.0.1", 0, access=ApiKeys())
        address = f"127.0.0.1:{await server.start()}"
        errors = []

        async def ask(prompt: str = SECRET, **options: object) -> None:
            async with AsyncClient(address) as client, asyncio.timeout(20):
                try:
                    messages = [{"role": "user", "content": prompt}]
                    async for _ in client.generate(prompt, **options):  # type: ignore[arg-type]
                        pass
                    async for _ in client.chat(messages, **options):  # type: ignore[arg-type]
                        pass
                except ServerError as error:
                    errors.append(f"{error} {error.message} {error.field}")
                except grpc.aio.AioRpcError as error:
                    errors.append(str(error))

        await ask(max_new_tokens=3)
        await ask(SECRET * 100, max_new_tokens=3)
        await ask(max_new_tokens=3, stop=[SECRET * 40])
        await ask(max_new_tokens=3, top_p=7.0)
        await ask(max_new_tokens=0)
        engine.refuse = RuntimeError("a bug")
        await ask(max_new_tokens=3)
        engine.refuse = RequestError(Code.RESOURCE_EXHAUSTED, "full", reason="QUEUE_FULL")
        await ask(max_new_tokens=3)
        await server.stop(0.0)
        log.close()
    lines = file.read_text().splitlines()
    assert len(lines) >= 7
    assert len(errors) >= 5
    out, err = capfd.readouterr()
    page = metrics.render()[0].decode()
    everything = "\n".join([*lines, *errors, caplog.text, out, err, page])
    assert "a bug" in caplog.text  # the operator learns of it, the client does not
    assert "a bug" not in "\n".join(errors)
    assert SECRET not in everything
    assert SECRET[:8] not in everything
