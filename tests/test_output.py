"""Output that nobody takes: the process that wrote it goes on, and so does what it started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ENVIRONMENT, is_alive
from tests.waiting import HANG_SECONDS, wait_until

pytestmark = pytest.mark.processes

# Says more than any pipe holds: itself, by a logger, as a library in C would, and in a child.
TALKS = """
import logging, os, subprocess, sys
from switchyard.worker.output import lossy_output
with lossy_output():
    logging.basicConfig(level=logging.INFO)
    for _ in range(40):
        print("o" * 100_000)
        sys.stderr.write("e" * 100_000 + "\\n")
        sys.stderr.flush()
        logging.info("l" * 100_000)
        try:
            os.write(2, b"c" * 100_000)
        except OSError:
            pass
    subprocess.run([sys.executable, "-c", "print('x' * 10**7)"])
    open(sys.argv[1], "w").close()
sys.exit(7)
"""


@contextlib.contextmanager
def sink(kind: str) -> Iterator[int]:
    """A descriptor that takes nothing, or not much."""
    if kind == "full disk":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        if kind == "gone reader":
            os.close(reader)
    yield descriptor
    os.close(descriptor)
    if kind == "stuck reader":
        os.close(reader)


@pytest.mark.parametrize("kind", ["full disk", "gone reader", "stuck reader"])
def test_what_nobody_takes_neither_ends_nor_stops_a_process(kind: str, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with sink(kind) as descriptor:
        talking = subprocess.Popen(
            [sys.executable, "-c", TALKS, str(said)],
            stdout=descriptor,
            stderr=descriptor,
            env=ENVIRONMENT,
        )
        assert talking.wait(HANG_SECONDS) == 7
    assert said.exists()


def test_closed_output_is_none(tmp_path: Path) -> None:
    said = tmp_path / "said"
    command = [sys.executable, "-c", TALKS, str(said)]
    shell = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    assert subprocess.run(shell, env=ENVIRONMENT, check=False).returncode == 7
    assert said.exists()


SPEAKS = """
import sys
from switchyard.worker.output import lossy_output
with lossy_output():
    for number in range(200):
        print(number, file=sys.stderr if number % 2 else sys.stdout)
"""


def test_what_is_taken_arrives_whole_and_in_order() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPEAKS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
        check=True,
    )
    assert done.stdout.split() == [b"%d" % number for number in range(200)]


NESTS = """
import os, sys
from pathlib import Path
from switchyard.worker.output import lossy_output
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
with lossy_output():
    num_copiers = len(children.read_text().split())
    with lossy_output():
        print(num_copiers, len(children.read_text().split()))
"""


@pytest.mark.parametrize(("is_file", "expected"), [(False, "1 1"), (True, "0 0")])
def test_one_copier_for_all_and_none_for_files(
    is_file: bool, expected: str, tmp_path: Path
) -> None:
    with (tmp_path / "out").open("wb") as file:
        target = file if is_file else subprocess.PIPE
        done = subprocess.run(
            [sys.executable, "-c", NESTS],
            stdout=target,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            check=True,
        )
    said = (tmp_path / "out").read_bytes() if is_file else done.stdout
    assert said.decode().strip() == expected


WAITS = """
import os, time
from switchyard.worker.output import lossy_output
with lossy_output():
    os.write(1, b"x" * 200_000)
    os.write(2, b"ready")
    time.sleep(600)
"""


def test_a_copier_with_a_stuck_reader_ends_with_its_parent() -> None:
    with sink("stuck reader") as descriptor:
        waiting = subprocess.Popen(
            [sys.executable, "-c", WAITS],
            stdout=descriptor,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        assert waiting.stderr is not None
        with waiting.stderr:
            assert waiting.stderr.read(5) == b"ready"
        [copier] = Path(f"/proc/{waiting.pid}/task/{waiting.pid}/children").read_text().split()
        waiting.kill()
        waiting.wait()
        wait_until(lambda: not is_alive(int(copier)))
