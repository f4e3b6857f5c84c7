"""A rank is killed or stopped: noticed by itself, and no stream is lost, cut or changed."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.faults.kills import Kill, disturbed, random_kills
from tests.faults.server import Server
from tests.faults.streams import answers, mixed_requests

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

PATIENT = ("--step-timeout", "60")
"""A killed or stopped rank is noticed without it; and tests may share the machine."""

OVERDUE = "is not answered after"
"""In the log when nothing but the time-out of a step has noticed."""

LAYOUTS = {
    "tp1": (["--tp", "1"], 1, 4),
    "tp2": (["--tp", "2"], 2, 4),
    "dp2": (["--dp", "2", "--moe-ep-backend", "allgather_reducescatter"], 2, 4),
}


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_streams_go_on_where_a_rank_was_killed(layout: str, tmp_path: Path) -> None:
    flags, num_ranks, num_kills = LAYOUTS[layout]
    requests = mixed_requests(seed=num_ranks, count=14)
    with Server(tmp_path, *flags, "--restart-window", "1", *PATIENT) as server:
        quiet = await answers(server.address, requests)
        num_tokens = sum(answer.usage[1] for answer in quiet)
        kills = random_kills(random.Random(layout), num_kills, num_ranks, num_tokens)
        disturbed_answers, times = await disturbed(server, requests, kills)
        log = server.log
    for calm, shaken in zip(quiet, disturbed_answers, strict=True):
        assert shaken.outcome() == calm.outcome()
    assert sum(shaken.replays for shaken in disturbed_answers) >= num_kills
    assert len(times) == num_kills
    assert OVERDUE not in log, log
    assert log.count("the workers are back") == num_kills, log


async def test_a_stopped_rank_is_noticed_and_replaced(tmp_path: Path) -> None:
    requests = mixed_requests(seed=7, count=10)
    with Server(tmp_path, "--tp", "2", *PATIENT) as server:
        quiet = await answers(server.address, requests)
        kills = [
            Kill(at_tokens=100, rank=0, signal=signal.SIGSTOP),
            Kill(at_tokens=500, rank=1, signal=signal.SIGSTOP),
        ]
        shaken, times = await disturbed(server, requests, kills)
        log = server.log
    assert [each.outcome() for each in shaken] == [each.outcome() for each in quiet]
    assert len(times) == len(kills)
    assert OVERDUE not in log, log
