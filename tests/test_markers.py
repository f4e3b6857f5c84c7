"""`make check` leaves out what a marker calls costly, and no test hides what it costs."""

import multiprocessing
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import triton
from triton import language as tl

ROOT = Path(__file__).parents[1]
COSTLY = ["processes", "interpreter", "slow"]


@triton.jit
def _add_one_kernel(values):
    tl.store(values, tl.load(values) + 1)


def marked_out(arguments: str) -> list[str]:
    """Markers whose tests do not run, in order."""
    (expression,) = re.findall(r"-m '([^']*)'", arguments)
    return re.findall(r"\w+", re.sub(r"\b(not|and|or)\b", "", expression))


def test_a_python_process_needs_its_marker() -> None:
    with pytest.raises(pytest.fail.Exception, match="'processes'"):
        subprocess.run([sys.executable, "-c", ""], check=True)
    process = multiprocessing.get_context("spawn").Process(target=print)
    with pytest.raises(pytest.fail.Exception, match="'processes'"):
        process.start()
    assert not multiprocessing.active_children()


def test_another_program_needs_none() -> None:
    assert subprocess.run(["true"], check=False).returncode == 0


@pytest.mark.processes
def test_with_the_marker_a_process_starts() -> None:
    assert subprocess.run([sys.executable, "-c", "exit(3)"], check=False).returncode == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")
def test_an_interpreted_kernel_needs_its_marker() -> None:
    values = torch.zeros(1)
    with pytest.raises(pytest.fail.Exception, match="'interpreter'"):
        _add_one_kernel[(1,)](values)
    assert values.item() == 0.0


@pytest.mark.interpreter
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")
def test_with_the_marker_a_kernel_runs() -> None:
    values = torch.zeros(1)
    _add_one_kernel[(1,)](values)
    assert values.item() == 1.0


def test_check_leaves_out_what_is_costly_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    left_out = marked_out(project["addopts"])
    check = (ROOT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0]
    assert marked_out(check) == left_out + COSTLY
    known = [marker.split(":")[0] for marker in project["markers"]]
    assert sorted(known) == sorted(left_out + COSTLY)
