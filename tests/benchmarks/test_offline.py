"""What offline makes of arrivals and of the server's own measures."""

from __future__ import annotations

import argparse
import asyncio

import pytest

from benchmarks import offline
from benchmarks.server import Server
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.fakes import MODEL, running_server
from workers.step.roofline import Roofline


def test_only_steps_in_which_all_decode_count() -> None:
    # A step takes 10 until the second sequence begins, 2 while both run, and 1 once it has ended.
    first = [10.0, 20.0, 30.0, 32.0, 34.0, 36.0, 37.0, 38.0, 39.0, 40.0, 41.0]
    second = [30.5, 32.5, 34.5, 36.5]
    assert offline.step_seconds([first, second]) == pytest.approx(2.0)


def test_tokens_that_come_together_are_as_many_steps() -> None:
    assert offline.step_seconds([[0.0, 3.0, 3.0, 3.0, 6.0, 6.0, 6.0]]) == pytest.approx(1.0)
    assert offline.step_seconds([[5.0]]) is None
    assert offline.step_seconds([[1.0, 2.0], [3.0, 4.0]]) is None


def test_the_servers_measures_are_differences() -> None:
    before = pb.StepTotals(steps=5, device_seconds=7.0, floor_seconds=1.0, idle_seconds=2.0)
    after = pb.StepTotals(steps=15, device_seconds=7.2, floor_seconds=1.15, idle_seconds=2.01)
    after.bytes_moved = 1e12
    live = offline._live(before, after)
    assert live == pytest.approx({"device ms": 20.0, "live share %": 75.0, "idle ms": 1.0})
    after.floor_seconds = before.floor_seconds
    assert offline._live(before, after)["live share %"] is None
    after.bytes_moved = before.bytes_moved
    assert offline._live(before, after)["idle ms"] is None
    assert set(offline._live(before, before).values()) == {None}


async def test_floors_are_for_the_server_s_device_and_layout() -> None:
    info = pb.GetServerInfoResponse(
        device="NVIDIA H200",
        dtype="bfloat16",
        tensor_parallel_size=1,
        data_parallel_size=1,
        expert_parallel_size=1,
        moe_ep_backend="disabled",
    )
    roofline = offline._roofline("benchmarks/configs/qwen3-30b-a3b", info)
    assert isinstance(roofline, Roofline)
    case = offline.Case(64, 1024, 2)
    row = {"TPOT ms": 20.0, "prefill tok/s": 67e3}
    floors = offline._floors(case, row, roofline, info)
    assert floors["floor ms"] == pytest.approx(15.34, rel=0.01)
    assert floors["share %"] == pytest.approx(76.7, rel=0.01)
    assert floors["prefill share %"] == pytest.approx(49, rel=0.01)
    info.device = "Abacus"
    assert offline._floors(case, row, roofline, info) == {}


async def test_a_sweep_over_a_server_that_measures_nothing() -> None:
    flags = argparse.Namespace(
        api_key=None,
        batch_sizes=[1, 3],
        input_lens=[4],
        output_lens=[8],
        repeat=2,
        seed=0,
        model=None,
    )
    async with running_server() as running, asyncio.timeout(30):
        server = Server(
            address=running.address,
            model=running.service.model_info(),
            info=running.service.server_info(),
            startup_seconds=None,
        )
        assert server.describe().startswith(MODEL)
        rows = await offline._sweep(flags, server)
    assert [row["batch"] for row in rows] == [1, 3]
    for row in rows:
        assert row["step ms"] is None or row["step ms"] > 0
        assert row["device ms"] is row["live share %"] is row["idle ms"] is None
