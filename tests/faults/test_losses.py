"""Faults besides a killed rank: poison, hangs, too many crashes, and frontends that die."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from demo import CHECKPOINT
from frontend.probe import Verdict, probe
from switchyard.client import AsyncClient, ServerError
from tests.faults.inject import GRIP, POISON, STALL, spoil_ranks
from tests.faults.kills import serves_again
from tests.faults.server import ROOT, Server, descendants, is_alive, send, wait_until_gone
from tests.faults.streams import Answer, Asked, Progress, answer, answers, mixed_requests

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]


def outcomes(given: Sequence[Answer]) -> list[tuple[Any, ...]]:
    return [each.outcome() for each in given]


async def test_a_poisonous_request_fails_alone(tmp_path: Path) -> None:
    innocent = mixed_requests(seed=3, count=6, max_new_tokens=60)
    poison = Asked((5, POISON, 6), {"temperature": 0.0, "max_new_tokens": 4})
    with Server(tmp_path, path=(spoil_ranks(tmp_path),)) as server:
        quiet = await answers(server.address, innocent)
        async with AsyncClient(server.address) as client:
            running = [asyncio.create_task(answer(client, asked)) for asked in innocent]
            await asyncio.sleep(0.2)
            with pytest.raises(ServerError) as caught:
                await answer(client, poison)
            shaken = await asyncio.gather(*running)
        log = server.log
    assert (caught.value.code.name, caught.value.reason) == ("INTERNAL", "POISON")
    assert outcomes(shaken) == outcomes(quiet)
    assert log.count("the workers are back") == 4, log


@pytest.mark.parametrize("token", [STALL, GRIP])
async def test_a_rank_that_hangs_is_replaced(token: int, tmp_path: Path) -> None:
    requests = mixed_requests(seed=4, count=5, max_new_tokens=60)
    hanging = Asked((5, token, 6), {"temperature": 0.0, "max_new_tokens": 8, "ignore_eos": True})
    # Before the rank notices by itself that it stands still.
    flags = ("--tp", "2", "--step-timeout", "2")
    with Server(tmp_path, *flags, path=(spoil_ranks(tmp_path),)) as server:
        shaken = await answers(server.address, [*requests, hanging])
        quiet = await answers(server.address, [*requests, hanging])
        log = server.log
    assert outcomes(shaken) == outcomes(quiet)
    assert log.count("the workers are back") == 1, log
    assert "is not answered after" in log, log


async def test_one_crash_too_many_ends_the_server(tmp_path: Path) -> None:
    requests = mixed_requests(seed=5, count=4, max_new_tokens=400)
    with Server(tmp_path, "--tp", "2", "--max-restarts", "0") as server:
        everything = descendants(server.process.pid)
        async with AsyncClient(server.address) as client:
            running = [asyncio.create_task(answer(client, asked)) for asked in requests]
            await asyncio.sleep(1)
            send(server.ranks()[1], signal.SIGKILL)
            ended = await asyncio.gather(*running, return_exceptions=True)
        code = await asyncio.to_thread(server.process.wait, 20)
        await asyncio.to_thread(wait_until_gone, everything, 5)
        log = server.log
    for error in ended:
        assert isinstance(error, ServerError), error
        assert (error.code.name, error.reason) == ("UNAVAILABLE", "STREAM_LOST")
    assert code == 1
    assert "--max-restarts is 0" in log


@pytest.mark.parametrize("tp", [1, 2])
async def test_a_killed_frontend_is_started_again(tmp_path: Path, tp: int) -> None:
    """Idle, then under traffic. Ranks that did not hang in a half-sent step keep their weights."""
    asked = mixed_requests(seed=6, count=7, max_new_tokens=60)
    with Server(tmp_path, "--tp", str(tp)) as server:
        quiet = await answers(server.address, asked)
        ranks, frontend = server.ranks(), server.frontend()
        send(frontend, signal.SIGKILL)
        idle_seconds = await serves_again(server, frontend)
        assert server.ranks() == ranks
        assert outcomes(await answers(server.address, asked)) == outcomes(quiet)
        progress, frontend = Progress(), server.frontend()
        cut = asyncio.create_task(answers(server.address, asked, progress))
        await progress.reach(40)
        send(frontend, signal.SIGKILL)
        with pytest.raises(ServerError) as caught:
            await cut
        busy_seconds = await serves_again(server, frontend)
        assert outcomes(await answers(server.address, asked)) == outcomes(quiet)
        assert server.ranks() == ranks or "in the middle of a step" in server.log
        server.process.terminate()
        assert await asyncio.to_thread(server.process.wait, 20) == 0
        log = server.log
    assert caught.value.code.name == "UNAVAILABLE"
    assert log.count("the frontend was killed by SIGKILL; starting it again") == 2, log
    assert log.endswith("switchyard: stopping: no request is open\n")
    times = f"{idle_seconds:.2f} s idle, {busy_seconds:.2f} s under load"
    print(f"tp {tp}: serves again after {times}")  # noqa: T201 - what was measured


async def test_a_killed_launcher_costs_no_stream(tmp_path: Path) -> None:
    asked = mixed_requests(seed=8, count=7, max_new_tokens=120)
    with Server(tmp_path, "--tp", "2", "--step-timeout", "10") as server:
        quiet = await answers(server.address, asked)
        progress = Progress()
        running = asyncio.create_task(answers(server.address, asked, progress))
        await progress.reach(60)
        send(server.launcher(), signal.SIGKILL)
        shaken = await running
        log = server.log
    assert outcomes(shaken) == outcomes(quiet)
    assert sum(each.replays for each in shaken) > 0
    assert "the workers' launcher was killed by SIGKILL; starting it again" in log, log


async def test_ranks_outlive_their_frontend_and_serve_the_next(tmp_path: Path) -> None:
    """One that is killed under traffic, and one that is stopped."""
    listen = f"unix:{tmp_path}/rank-{{rank}}.sock"
    model = ["--model", str(CHECKPOINT)]
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        def frontend() -> tuple[subprocess.Popen[str], str]:
            process = start("frontend", *model, "--workers", listen, "--port", "0")
            assert process.stdout is not None
            return process, process.stdout.readline().split(" on ", 1)[1].split(" ", 1)[0]

        workers = start("workers", *model, "--listen", listen, "--device", "cpu")
        first, address = await asyncio.to_thread(frontend)
        asked = mixed_requests(seed=6, count=7, max_new_tokens=40)
        quiet = await answers(address, asked)
        ranks = [pid for pid in descendants(workers.pid) if is_alive(pid)]
        progress = Progress()
        cut = asyncio.create_task(answers(address, asked, progress))
        await progress.reach(20)
        first.kill()
        with pytest.raises(ServerError):
            await cut
        second, address = await asyncio.to_thread(frontend)
        assert probe(address)[0] is Verdict.HEALTHY
        assert outcomes(await answers(address, asked)) == outcomes(quiet)
        second.terminate()
        assert await asyncio.to_thread(second.wait, 20) == 0
        _, address = await asyncio.to_thread(frontend)
        assert outcomes(await answers(address, asked)) == outcomes(quiet)
        assert all(is_alive(pid) for pid in ranks)
