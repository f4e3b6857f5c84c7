"""`switchyard serve`: what its flags become in both halves, what is said of flags it has not."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

import workers.__main__
from frontend.__main__ import parse_config
from frontend.cli import main, serve
from frontend.cli.foreign_flags import VLLM_FLAGS
from switchyard.flags import read
from workers.config import ParallelFlags, WorkerConfig


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_no_flag_is_taken_for_another_that_begins_with_it(capsys) -> None:
    """A key was taken for the name of a file of keys."""
    with pytest.raises(SystemExit):
        main.main(["serve", "--api-key-fil", "abc"])
    line = "switchyard serve: there is no flag --api-key-fil, but --api-key-file; see"
    assert line in capsys.readouterr().err


def test_serve_passes_on_what_was_given(model: Path) -> None:
    flags = main._parser().parse_args(
        ["serve", str(model), "--tensor-parallel-size", "2", "--device", "cpu", "--port", "7"]
    )
    front = serve.frontend_command(flags, model, "unix:x")
    assert parse_config(front[3:]).port == 7
    assert parse_config(front[3:]).served_name == model.name
    group = serve.workers_command(flags, model, "unix:x")
    assert group[3:] == [
        "--model", str(model), "--nproc", "2", "--listen", "unix:x", "--tp", "2", "--device", "cpu",
        "--load-progress", "lines",
    ]  # fmt: skip


def test_flags_of_vllm_mean_the_same_here(model: Path) -> None:
    flags = main._parser().parse_args(
        ["serve", "--model", str(model), "--gpu-memory-utilization", "0.8", "--max-num-seqs", "9",
         "--tensor-parallel-size", "2", "--max-model-len", "32k", "--served-model-name", "m"]
    )  # fmt: skip
    front = parse_config(serve.frontend_command(flags, model, "unix:x")[3:])
    assert front.served_name == "m"
    group = workers.__main__.parser().parse_args(serve.workers_command(flags, model, "unix:x")[3:])
    config = read(WorkerConfig, group)
    assert (config.memory_fraction, config.max_batch_size) == (0.8, 9)
    assert config.max_model_len == 32_000
    assert read(ParallelFlags, group).tp == 2


@pytest.mark.parametrize(
    ("words", "is_terminal", "log_format", "progress"),
    [
        ([], True, "text", "bar"),
        ([], False, "json", "lines"),
        (["--request-log-format", "auto", "--load-progress", "auto"], True, "text", "bar"),
        (["--request-log-format", "json", "--load-progress", "lines"], True, "json", "lines"),
        (["--request-log-format", "text", "--load-progress", "bar"], False, "text", "bar"),
    ],
)
def test_serve_knows_what_its_halves_write_to(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    is_terminal: bool,
    log_format: str,
    progress: str,
) -> None:
    """For them it is a pipe, which a person or a program may read."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    flags = main._parser().parse_args(["serve", str(model), *words])
    front = parse_config(serve.frontend_command(flags, model, "unix:x")[3:])
    assert front.request_log_format == log_format
    group = workers.__main__.parser().parse_args(serve.workers_command(flags, model, "unix:x")[3:])
    assert read(WorkerConfig, group).load_progress == progress


def test_a_model_may_be_named_by_a_flag_but_not_two(model: Path, capfd) -> None:
    parse = main._parser().parse_args
    named = parse(["serve", "--model", str(model)])
    front = serve.frontend_command(named, model, "unix:x")
    assert parse_config(front[3:]).served_name == model.name
    assert main.main(["serve", "a/b", "--model", "c/d"]) == 2
    assert "a/b and --model c/d are two models; pass one" in capfd.readouterr().err


def test_what_is_told_of_vllms_other_flags_is_true(capsys) -> None:
    [serving] = (
        action.choices["serve"]
        for action in main._parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    existing = set(serving._option_string_actions)
    assert not existing & VLLM_FLAGS.keys()
    told = {flag for hint in VLLM_FLAGS.values() for flag in re.findall(r"--[a-z][a-z-]+", hint)}
    assert len(told) > 10
    assert told <= existing
    for words in (["-q", "fp8"], ["--enable-prefix-caching"], ["m", "-tp", "2"]):
        with pytest.raises(SystemExit):
            main.main(["serve", *words])
        [flag] = (word for word in words if word.startswith("-"))
        assert f"no flag {flag} here: {VLLM_FLAGS[flag]}" in capsys.readouterr().err


def test_help_of_serve_is_for_its_users(capsys) -> None:
    """No word of how it is made, and no flag that it does not read."""
    with pytest.raises(SystemExit):
        main.main(["serve", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: switchyard serve [MODEL] [FLAG …]\n")
    assert "Owns" not in text
    assert "--link-secret-file" not in text
    seldom = text.partition("seldom needed:")[2]
    assert "--step-timeout" in seldom
    assert "--tp" not in seldom.partition("Numbers")[0].split()


def test_serve_without_a_model_serves_the_demo(model: Path) -> None:
    flags = main._parser().parse_args(["serve", "--port", "7"])
    front = serve.frontend_command(flags, model, "unix:x")
    assert parse_config(front[3:]).served_name == "demo"
    assert serve.workers_command(flags, model, "unix:x")[3:5] == ["--model", str(model)]
    flags = main._parser().parse_args(["serve", "--served-model-name", "x"])
    front = serve.frontend_command(flags, model, "unix:x")
    assert parse_config(front[3:]).served_name == "x"


def test_serve_refuses_before_it_starts_anything(model: Path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(serve, "supervise", lambda **_: pytest.fail("started"))
    assert main.main(["serve", str(model), "--tp", "0"]) == 2
    assert main.main(["serve", "/nowhere"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "--tp is 0; pass a whole number, at least 1" in lines[0]
    assert "/nowhere" in lines[1]
