"""From outside: a log that nobody takes, processes stopped, ranks killed as soon as they serve."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.kills import Watch, serves_again
from tests.faults.streams import Answer, Asked, Progress, answers, mixed_requests, outcomes
from tests.processes import parent, send
from tests.server import Server
from tests.waiting import HANG_SECONDS

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

KILL, STOP = signal.SIGKILL, signal.SIGSTOP


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """The writing end of a pipe that is full and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


def leader(server: Server) -> int:
    """The ranks' parent."""
    return parent(server.ranks()[0])


async def shaken(server: Server, asked: list[Asked], shake: Callable[[], None]) -> list[Answer]:
    """Answers of a server that is shaken in their middle."""
    progress = Progress()
    running = asyncio.create_task(answers(server.address, asked, progress))
    await progress.reach(40)
    shake()
    return await running


async def test_neither_a_log_that_nobody_takes_nor_a_stop_costs_a_recovery(
    model: Path, tmp_path: Path
) -> None:
    asked = mixed_requests(seed=11, count=5, max_new_tokens=60)
    with full_pipe() as log, Server(tmp_path, str(model), "--tp", "2", stderr=log) as server:
        quiet = await answers(server.address, asked)
        ranks, launcher, frontend = server.ranks(), server.launcher(), server.frontend()

        def stop_all_others() -> None:
            for pid in (leader(server), launcher, frontend):
                send(pid, STOP)

        def stop_the_leader_and_kill_a_rank() -> None:
            send(leader(server), STOP)
            send(ranks[1], KILL)

        given = await shaken(server, asked, stop_all_others)
        assert outcomes(given) == outcomes(quiet)
        assert not any(each.replays for each in given)
        given = await shaken(server, asked, stop_the_leader_and_kill_a_rank)
        assert outcomes(given) == outcomes(quiet)
        assert any(each.replays for each in given)
        assert (server.launcher(), server.frontend()) == (launcher, frontend)
        given = await shaken(server, asked, lambda: send(launcher, KILL))
        assert outcomes(given) == outcomes(quiet)
        assert any(each.replays for each in given)
        assert server.launcher() != launcher
        send(frontend, KILL)
        await serves_again(server, frontend)
        server.process.terminate()
        assert await asyncio.to_thread(server.process.wait, HANG_SECONDS) == 0


async def test_ranks_killed_whenever_health_is_well_convict_no_request(
    model: Path, tmp_path: Path
) -> None:
    asked = mixed_requests(seed=12, count=7, max_new_tokens=60)
    with Server(tmp_path, str(model), "--max-restarts", "1000") as server:
        quiet = await answers(server.address, asked)
        watch, progress = Watch(server.address), Progress()
        running = asyncio.create_task(answers(server.address, asked, progress))
        await progress.reach(1)
        for _ in range(6):
            await watch.until(True)
            send(server.ranks()[0], KILL)
            await watch.until(False)
        assert outcomes(await running) == outcomes(quiet)
        await watch.close()
        assert server.log.count("the workers are back") == 6
