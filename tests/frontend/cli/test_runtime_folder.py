"""The folder of sockets and secret: private, gone in the end, after a kill at the next start."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from frontend.cli.runtime_folder import runtime_folder
from tests.processes import ENVIRONMENT

HOLDS = """
import sys
from frontend.cli.runtime_folder import runtime_folder
with runtime_folder() as folder:
    (folder / "link-secret").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def holder(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process with a folder, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        env=ENVIRONMENT | {"TMPDIR": str(parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_it_is_private_and_gone_in_the_end(parent: Path) -> None:
    with runtime_folder() as folder:
        assert folder.parent == parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.listdir(parent) == []


@pytest.mark.processes
def test_what_a_killed_server_left_goes_at_the_next_start_and_nothing_else(parent: Path) -> None:
    (parent / "switchyard-of-somebody").mkdir()
    (parent / "switchyard-of-somebody" / "link-secret").touch()
    killed, left = holder(parent)
    living, used = holder(parent)
    killed.kill()
    killed.communicate()
    assert (left / "link-secret").exists()
    with runtime_folder():
        assert not left.exists()
        assert (used / "link-secret").exists()
    living.communicate("")
    assert not used.exists()
    assert os.listdir(parent) == ["switchyard-of-somebody"]
