"""What can't be served ends the start by itself, with one line and a non-zero exit."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from demo import CHECKPOINT
from tests.processes import ENVIRONMENT
from tests.waiting import HANG_SECONDS

pytestmark = pytest.mark.processes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo model, to be damaged."""
    shutil.copytree(CHECKPOINT, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def refused(model: Path | None, *flags: str) -> list[str]:
    """Start a server that must not come up; the lines it leaves on stderr."""
    command = [sys.executable, "-m", "frontend.cli", "serve", *([str(model)] if model else [])]
    command += ["--port", "0", "--http-port", "0"]
    done = subprocess.run(
        [*command, "--device", "cpu", *flags],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env=ENVIRONMENT,
    )
    assert done.returncode not in (0, -9)
    assert "serving" not in done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


def check_one_line(lines: list[str], *words: str) -> None:
    """Exactly one line says what is wrong, naming all the words."""
    telling = [line for line in lines if all(word in line for word in words)]
    assert len(telling) == 1, lines
    assert not [line for line in lines if "cannot be reached" in line], lines


def test_a_truncated_shard_names_file_and_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4096])
    check_one_line(refused(folder, "--tp", "2"), "model.safetensors", "tensor", "truncated")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, path)
    check_one_line(refused(folder), "model.layers.1.mlp.experts.3.up_proj.weight is missing")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tp", "3"], ("--tp 3", "num_attention_heads 4")),
        (["--tp", "2", "--ep", "3"], ("ep", "3", "2")),
        (["--tp", "2", "--moe-ep-backend", "deepep"], ("deepep", "reserved")),
        (["--dp", "2", "--moe-ep-backend", "local_allreduce"], ("local_allreduce", "dp")),
        (["--moe-ep-backend", "magic"], ("magic", "all_to_all")),
        (["--moe-runner", "magic"], ("magic", "legacy")),
        (["--memory-fraction", "0"], ("--memory-fraction",)),
        (["--max-model-len", "9999999"], ("--max-model-len 9999999",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags_are_one_line(flags: list[str], words: tuple[str, ...]) -> None:
    check_one_line(refused(None, *flags), *words)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    check_one_line(refused(tmp_path / "nothing"), "nothing")


def test_a_port_in_use_is_named(taken_port: int) -> None:
    for flag in ("--port", "--http-port"):
        line = (f"cannot listen on 127.0.0.1:{taken_port}", flag)
        check_one_line(refused(None, flag, str(taken_port)), *line)
