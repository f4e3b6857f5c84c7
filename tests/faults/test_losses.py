"""Faults besides a killed rank: poison, hangs, too many crashes, and frontends that die."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from frontend.probe import Verdict, probe
from switchyard.client import AsyncClient, ServerError
from tests.faults.inject import GRIP, POISON, STALL, spoil_ranks
from tests.faults.kills import serves_again
from tests.faults.streams import Asked, Progress, answer, answers, mixed_requests, outcomes
from tests.processes import descendants, send, wait_until_gone
from tests.server import Server, lone_frontend
from tests.waiting import HANG_SECONDS
from tests.workers.launched import launched

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def spoilt(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose ranks go wrong over certain tokens; a rank that hangs is overdue before it
    notices by itself."""
    folder = tmp_path_factory.mktemp("spoilt")
    flags = ("--tp", "2", "--step-timeout", "2", "--restart-window", "0")
    with Server(folder, str(model), *flags, path=(spoil_ranks(folder),)) as server:
        yield server


async def test_a_poisonous_request_fails_alone(spoilt: Server) -> None:
    innocent = mixed_requests(seed=3, count=6, max_new_tokens=60)
    poison = Asked((5, POISON, 6), {"temperature": 0.0, "max_new_tokens": 4})
    quiet = await answers(spoilt.address, innocent)
    said = len(spoilt.log)
    async with AsyncClient(spoilt.address) as client:
        progress = Progress()
        running = [asyncio.create_task(answer(client, asked, progress)) for asked in innocent]
        await progress.reach(6)
        with pytest.raises(ServerError) as caught:
            await answer(client, poison)
        shaken = await asyncio.gather(*running)
    log = spoilt.log[said:]
    assert (caught.value.code.name, caught.value.reason) == ("INTERNAL", "POISON")
    assert outcomes(shaken) == outcomes(quiet)
    assert log.count("the workers are back") == 4, log


@pytest.mark.parametrize("token", [STALL, GRIP])
async def test_a_rank_that_hangs_is_replaced(token: int, spoilt: Server) -> None:
    requests = mixed_requests(seed=4, count=5, max_new_tokens=60)
    hanging = Asked((5, token, 6), {"temperature": 0.0, "max_new_tokens": 8, "ignore_eos": True})
    said = len(spoilt.log)
    shaken = await answers(spoilt.address, [*requests, hanging])
    quiet = await answers(spoilt.address, [*requests, hanging])
    log = spoilt.log[said:]
    assert outcomes(shaken) == outcomes(quiet)
    assert log.count("the workers are back") == 1, log
    assert "is not answered after" in log, log


async def test_one_crash_too_many_ends_the_server(model: Path, tmp_path: Path) -> None:
    requests = mixed_requests(seed=5, count=4, max_new_tokens=400)
    with Server(tmp_path, str(model), "--tp", "2", "--max-restarts", "0") as server:
        everything = descendants(server.process.pid)
        async with AsyncClient(server.address, resume_seconds=0.0) as client:
            progress = Progress()
            running = [asyncio.create_task(answer(client, asked, progress)) for asked in requests]
            await progress.reach(20)
            send(server.ranks()[1], signal.SIGKILL)
            ended = await asyncio.gather(*running, return_exceptions=True)
        code = await asyncio.to_thread(server.process.wait, HANG_SECONDS)
        await asyncio.to_thread(wait_until_gone, everything)
        log = server.log
    for error in ended:
        assert isinstance(error, ServerError), error
        assert (error.code.name, error.reason) == ("UNAVAILABLE", "STREAM_LOST")
    assert code == 1
    assert "--max-restarts is 0" in log


async def test_a_killed_frontend_is_started_again(model: Path, tmp_path: Path) -> None:
    """Idle, then under traffic. Ranks that did not hang in a half-sent step keep their weights;
    streams go on, unless their client wants them to end."""
    asked = mixed_requests(seed=6, count=7, max_new_tokens=60)
    with Server(tmp_path, str(model), "--tp", "2") as server:
        quiet = await answers(server.address, asked)
        ranks, frontend = server.ranks(), server.frontend()
        send(frontend, signal.SIGKILL)
        await serves_again(server, frontend)
        assert server.ranks() == ranks
        assert outcomes(await answers(server.address, asked)) == outcomes(quiet)
        progress, frontend = Progress(), server.frontend()
        running = asyncio.create_task(answers(server.address, asked, progress))
        cut = asyncio.create_task(answers(server.address, asked, resume_seconds=0.0))
        await progress.reach(40)
        send(frontend, signal.SIGKILL)
        with pytest.raises(ServerError) as caught:
            await cut
        shaken = await running
        assert outcomes(shaken) == outcomes(quiet)
        assert any(each.resumes for each in shaken)
        assert server.ranks() == ranks or "in the middle of a step" in server.log
        server.process.terminate()
        assert await asyncio.to_thread(server.process.wait, HANG_SECONDS) == 0
        log = server.log
    assert caught.value.code.name == "UNAVAILABLE"
    assert log.count("the frontend was killed by SIGKILL; starting it again") == 2, log
    assert "switchyard: stopping: no request is open\n" in log


@pytest.mark.grid  # test_outside.py kills one too
async def test_a_killed_launcher_costs_no_stream(model: Path, tmp_path: Path) -> None:
    asked = mixed_requests(seed=8, count=7, max_new_tokens=80)
    with Server(tmp_path, str(model), "--tp", "2") as server:
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


async def test_ranks_outlive_their_frontend_and_serve_the_next(model: Path, tmp_path: Path) -> None:
    """One that is killed under traffic, and one that is stopped."""
    asked = mixed_requests(seed=6, count=7, max_new_tokens=40)
    with launched(tmp_path, model=model) as workers:
        async with lone_frontend(workers.listen) as (process, address):
            quiet = await answers(address, asked)
            ranks = workers.ranks()
            progress = Progress()
            cut = asyncio.create_task(answers(address, asked, progress, resume_seconds=0.0))
            await progress.reach(20)
            process.kill()
            with pytest.raises(ServerError):
                await cut
        async with lone_frontend(workers.listen) as (process, address):
            assert probe(address)[0] is Verdict.HEALTHY
            assert outcomes(await answers(address, asked)) == outcomes(quiet)
            process.terminate()
            assert await asyncio.to_thread(process.wait, HANG_SECONDS) == 0
        async with lone_frontend(workers.listen) as (_, address):
            assert outcomes(await answers(address, asked)) == outcomes(quiet)
        assert workers.ranks() == ranks
