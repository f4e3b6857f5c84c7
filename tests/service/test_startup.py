"""What can't be served ends the start by itself, with one line and a non-zero exit."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def refused(model: Path | None, *flags: str, search: str = "") -> list[str]:
    """Start a server that must not come up; the lines it leaves on stderr.

    Args:
        search: a folder before all others in its processes' search path.
    """
    command = [sys.executable, "-m", "frontend.cli", "serve", *([str(model)] if model else [])]
    command += ["--port", "0", "--http-port", "0"]
    done = subprocess.run(
        [*command, "--device", "cpu", *flags],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env=ENVIRONMENT | {"PYTHONPATH": f"{search}:{ENVIRONMENT['PYTHONPATH']}"},
    )
    assert done.returncode == 2
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


# ---- model folders ----


def config(**values: Any) -> Callable[[Path], None]:
    """Change keys of config.json."""

    def change(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**said, **values}))

    return change


def text(name: str, contents: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(contents)

    return change


def fifo(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def tokenizer_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        said = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**said, **values}))

    return change


def lie(folder: Path) -> None:
    """The header tells of values that are not there."""
    header = b'{"a": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4000000000]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


BEFORE_TORCH: list[tuple[Callable[[Path], None], tuple[str, ...]]] = [
    (config(model_type="bert"), ("config.json", "model_type 'bert'", "switchyard models")),
    (config(num_hidden_layers=10**9), ("config.json", "num_hidden_layers is 1000000000", "1024")),
    (config(max_position_embeddings=10**18), ("config.json", "max_position_embeddings is 1000")),
    (config(rms_norm_eps=float("nan")), ("config.json", "'rms_norm_eps' is no finite number")),
    (config(quantization_config={"quant_method": "fp8"}), ("config.json", "'fp8'", "bfloat16")),
    (config(scoring_func="sigmoid"), ("config.json", "scoring_func is 'sigmoid'")),
    (config(eos_token_id=1024), ("config.json", "eos_token_id 1024", "vocab_size is 1024")),
    (text("config.json", "[" * 10**5), ("config.json", "nested too deeply")),
    (text("generation_config.json", '{"a":' * 10**5), ("generation_config.json", "too deeply")),
    (text("generation_config.json", '{"eos_token_id": "x"}'), ("eos_token_id is 'x'",)),
    (text("generation_config.json", '{"top_p": 7}'), ("generation_config.json", "top_p 7")),
    (fifo("config.json"), ("config.json: is a FIFO",)),
    (fifo("generation_config.json"), ("generation_config.json: is a FIFO",)),
    (fifo("model.safetensors"), ("model.safetensors: is a FIFO",)),
    (lie, ("model.safetensors", "tensor a ends at 4000000", "truncated")),
    (without_weights, ("--load-format dummy",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"), BEFORE_TORCH, ids=[" ".join(words) for _, words in BEFORE_TORCH]
)
def test_a_folder_that_its_small_files_tell_of_is_refused_without_torch(
    change: Callable[[Path], None], words: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    change(folder)
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    lines = refused(folder, search=str(tmp_path))
    check_one_line(lines, *words)
    assert not [line for line in lines if "torch was imported" in line]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fifo("tokenizer.json"), ("tokenizer.json: is a FIFO",)),
        (tokenizer_config(eos_token="<|new|>"), ("token 1024, '<|new|>'", "vocab_size is 1024")),
        (text("tokenizer.json", "[]"), ("tokenizer in", "cannot be read")),
        (text("chat_template.jinja", "{% for"), ("the chat template in", "line 1")),
        (config(moe_intermediate_size=1 << 24, hidden_size=1 << 18), ("has shape",)),
    ],
    ids=["fifo", "end token", "tokenizer", "template", "sizes"],
)
def test_a_folder_that_its_other_files_tell_of_is_refused(
    change: Callable[[Path], None], words: tuple[str, ...], folder: Path
) -> None:
    change(folder)
    check_one_line(refused(folder), *words)


def test_a_model_beyond_the_memory_is_refused_before_it_is_made(folder: Path) -> None:
    config(hidden_size=1 << 18, moe_intermediate_size=1 << 24)(folder)
    lines = refused(folder, "--load-format", "dummy")
    check_one_line(lines, "a rank's weights take", "GiB to spare", "--tp")


def test_unknown_keys_are_named_and_do_not_matter(folder: Path) -> None:
    config(frobnicate=1, **{f"odd_{number}": 0 for number in range(9)})(folder)
    without_weights(folder)
    lines = refused(folder, "--load-format", "dummy", "--max-model-len", "9999")
    check_one_line(lines, "config.json has 'frobnicate', 'odd_0'", "and 5 more")
    check_one_line(lines, "--max-model-len 9999")
