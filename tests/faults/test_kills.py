"""A rank is killed or stopped: noticed by itself, and no stream is lost, cut or changed."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from tests.faults.kills import disturbed, random_kills
from tests.faults.streams import Progress, answers, mixed_requests
from tests.faults.tool_calls import Called, tool_calls
from tests.server import Server

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

OVERDUE = "is not answered after"
"""In the log when nothing but the time-out of a step has noticed."""

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
LAYOUTS = {
    "tp1": ["--tp", "1"],
    "tp2": ["--tp", "2"],
    "dp2": ["--dp", "2", "--moe-ep-backend", "allgather_reducescatter"],
}
CASES = [
    ("tp2", (STOP, KILL)),
    ("dp2", (KILL,)),
    pytest.param("tp1", (KILL, KILL, KILL), marks=pytest.mark.grid),
    pytest.param("tp2", (KILL, STOP, STOP, KILL), marks=pytest.mark.grid),
    pytest.param("dp2", (KILL, KILL, KILL), marks=pytest.mark.grid),
]
"""A layout, and what its ranks get in turn."""


@pytest.mark.parametrize(("layout", "signals"), CASES)
async def test_streams_go_on_where_a_rank_was_killed(
    layout: str, signals: tuple[signal.Signals, ...], model: Path, tmp_path: Path
) -> None:
    """Or stopped. A rank of its own is killed in test_outside.py, more often."""
    flags = LAYOUTS[layout]
    num_ranks, num_kills = int(flags[1]), len(signals)
    requests = mixed_requests(seed=num_ranks, count=14)
    with Server(tmp_path, str(model), *flags, "--restart-window", "1") as server:
        quiet = await answers(server.address, requests)
        called = await tool_calls(server.http_address, range(4))
        num_tokens = sum(answer.usage[1] for answer in quiet)
        kills = random_kills(random.Random(layout), signals, num_ranks, num_tokens)
        progress = Progress()

        async def call_meanwhile() -> list[Called]:
            await progress.reach(2 * len(requests))  # so that not all constraints come at once
            return await tool_calls(server.http_address, range(4))

        calling = asyncio.create_task(call_meanwhile())
        disturbed_answers, times = await disturbed(server, requests, kills, progress)
        assert await calling == called
        log = server.log
    for calm, shaken in zip(quiet, disturbed_answers, strict=True):
        assert shaken.outcome() == calm.outcome()
    assert sum(shaken.replays for shaken in disturbed_answers) >= num_kills
    assert len(times) == num_kills
    assert OVERDUE not in log, log
    assert log.count("the workers are back") == num_kills, log
