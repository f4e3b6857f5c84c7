"""The committed stubs are what the .proto files say."""

import subprocess
import sys
from pathlib import Path

import pytest

PROTO = Path(__file__).parents[1] / "proto"
FILES = sorted(PROTO.rglob("*.proto"))


@pytest.mark.processes
def test_stubs_are_fresh(tmp_path: Path) -> None:
    assert len(FILES) == 4
    out = [f"--{kind}={tmp_path}" for kind in ("python_out", "grpc_python_out", "pyi_out")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *out]
    subprocess.run([*command, *map(str, FILES)], check=True)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*"))
    assert len(made) == 12
    for path in made:
        fresh, committed = (tmp_path / path).read_text(), (PROTO / path).read_text()
        assert fresh == committed, f"proto/{path} is stale; run `make protos`"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_field_number_of_a_hot_message_takes_one_byte(path: Path) -> None:
    """Field numbers up to 15 take one byte on the wire; these messages travel every step."""
    hot = {"Delta", "StepRequest", "StepResult"}
    seldom = {"KeptStates"}  # in few of them
    message = None
    for line in path.read_text().splitlines():
        words = line.split()
        if line.startswith("message "):
            message = words[1]
        elif message in hot and "=" in words and words[0] not in {"//", *seldom}:
            assert int(words[words.index("=") + 1].rstrip(";")) <= 15, f"{message}: {line}"
