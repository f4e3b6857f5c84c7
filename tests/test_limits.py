"""Limits of the shell that no server can live with: one line that names them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from switchyard.worker.limits import check_limits

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("files", "memory", "ranks", "words"),
    [
        (20, -1, False, "ulimit -n is 20: "),
        (1024, 1200 << 20, True, "ulimit -v is 1228800: "),
        (1024, 1200 << 20, False, None),
        (64, 4 << 30, True, None),
        (-1, -1, True, None),
    ],
)
def test_what_is_too_little(
    files: int, memory: int, ranks: bool, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {resource.RLIMIT_NOFILE: files, resource.RLIMIT_AS: memory}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], limits[which]))
    if words is None:
        check_limits(ranks=ranks)
        return
    with pytest.raises(ValueError) as refused:
        check_limits(ranks=ranks)
    assert str(refused.value).startswith(words)


@pytest.mark.processes
@pytest.mark.parametrize("limit", ["-n 20", "-v 1200000"])
def test_a_server_refuses_them_in_one_line(limit: str) -> None:
    serve = f"ulimit {limit}; exec {sys.executable} -m frontend.cli serve --port 0"
    done = subprocess.run(
        ["sh", "-c", serve],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    flag, value = limit.split()
    assert done.returncode == 2
    assert done.stderr.startswith(f"switchyard: ulimit {flag} is {value}: ")
    assert done.stderr.count("\n") == 1
