"""A frontend that stands still, for shorter or longer than its clients wait: no stream is lost.

It has no supervisor, which would let it go on at once.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from switchyard import client as client_module
from switchyard.client import AsyncClient
from switchyard.v1 import inference_pb2 as pb
from tests.faults.streams import Progress, answer, answers, mixed_requests, outcomes
from tests.server import lone_frontend
from tests.waiting import until
from tests.workers.launched import launched

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

PAUSE_SECONDS = 20.0
ASKED = mixed_requests(seed=14, count=7, max_new_tokens=150)


@pytest.mark.slow
async def test_a_pause_of_20_s_costs_a_client_nothing(model: Path, tmp_path: Path) -> None:
    with launched(tmp_path, model=model) as workers:
        async with lone_frontend(workers.listen) as (process, address):
            quiet = await answers(address, ASKED)
            progress = Progress()
            running = asyncio.create_task(answers(address, ASKED, progress))
            await progress.reach(60)
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(PAUSE_SECONDS)
            process.send_signal(signal.SIGCONT)
            given = await running
    assert outcomes(given) == outcomes(quiet)
    assert not any(each.resumes for each in given)


async def test_clients_that_gave_a_live_server_up_go_on_with_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds their streams still, for it has noticed nothing."""
    pings = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    options = dict(client_module.CHANNEL_OPTIONS) | dict.fromkeys(pings, 1000)
    monkeypatch.setattr(client_module, "CHANNEL_OPTIONS", tuple(options.items()))
    with launched(tmp_path, model=model) as workers:
        async with lone_frontend(workers.listen) as (process, address):
            quiet = await answers(address, ASKED)
            async with AsyncClient(address) as client:
                progress = Progress()
                running = [asyncio.create_task(answer(client, each, progress)) for each in ASKED]
                await progress.reach(60)
                process.send_signal(signal.SIGSTOP)
                await until(lambda: all(each._losses._num_tries for each in client._streams))
                process.send_signal(signal.SIGCONT)
                given = await asyncio.gather(*running)
                load = await client.stub.GetLoad(pb.GetLoadRequest())
    assert outcomes(given) == outcomes(quiet)
    assert any(each.resumes for each in given)
    assert (load.running_requests, load.queued_requests) == (0, 0)
