"""The launcher's own arithmetic; what it starts is tested through the whole service."""

import argparse

import pytest

from moe.config import resolve_parallel
from switchyard.worker.link import local_address
from workers.__main__ import _rank_arguments, _ranks_here


def flags(nproc: int | None, nnodes: int = 1, rdzv: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(nproc=nproc, nnodes=nnodes, rdzv_endpoint=rdzv)


PARALLEL = resolve_parallel(tp=4, dp=2, ep=None, backend="auto", has_experts=True)


@pytest.mark.parametrize(
    ("nproc", "nnodes", "here"), [(8, 1, 8), (None, 1, 8), (4, 2, 4), (None, 4, 2)]
)
def test_ranks_on_this_machine(nproc: int | None, nnodes: int, here: int) -> None:
    assert _ranks_here(flags(nproc, nnodes, "host:1"), PARALLEL) == here


@pytest.mark.parametrize(("nproc", "nnodes"), [(2, 1), (8, 2), (None, 3)])
def test_ranks_that_do_not_make_the_layout_are_refused(nproc: int | None, nnodes: int) -> None:
    with pytest.raises(ValueError, match="--tp 4 × --dp 2 = 8"):
        _ranks_here(flags(nproc, nnodes, "host:1"), PARALLEL)


def test_several_machines_need_a_meeting_point() -> None:
    with pytest.raises(ValueError, match="--rdzv-endpoint"):
        _ranks_here(flags(4, 2), PARALLEL)


def test_ranks_get_the_command_line_without_the_launchers_flags() -> None:
    line = ["--model", "m", "--nproc", "2", "--tp=2", "--nnodes=1", "--rdzv-endpoint", "h:1"]
    assert _rank_arguments([*line, "--seed", "3"]) == ["--model", "m", "--tp=2", "--seed", "3"]


def test_addresses_of_ranks() -> None:
    assert local_address("unix:/run/rank-{rank}.sock", 3) == "unix:/run/rank-3.sock"
    assert local_address("0.0.0.0:50061", 3) == "0.0.0.0:50064"
