"""The command `llm`, which knows the server from its extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.cases import (
    ANSWER,
    KEY,
    MODEL,
    PAINT,
    SUM,
    Paint,
    needs,
    terse,
)
from tests.clients.loops import LOOPS

pytestmark = needs("llm")

Ask = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ask(url: str, tmp_path: Path) -> Ask:
    """Runs it with these arguments, in a home of its own."""
    known = {"model_id": MODEL, "model_name": MODEL, "api_base": url, "api_key_name": "demo"}
    known |= {"supports_schema": True, "supports_tools": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([known]))  # JSON is YAML
    (tmp_path / "keys.json").write_text(json.dumps({"demo": KEY}))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llm", "-m", MODEL, *arguments],
            env=os.environ | {"LLM_USER_PATH": str(tmp_path)},
            text=True, capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    return run


def test_it_answers_whole_and_streamed(ask: Ask) -> None:
    for whole in ([], ["--no-stream"]):
        answer = ask(SUM, "--usage", *whole)
        assert answer.stdout.strip() == ANSWER, answer.stderr
        assert "3 output" in answer.stderr


def test_output_keeps_to_a_schema(ask: Ask) -> None:
    schema = json.dumps(Paint.model_json_schema())
    answer = ask(PAINT, "--schema", schema, "-o", "logit_bias", json.dumps(terse()))
    Paint.model_validate_json(answer.stdout)


CALCULATOR = """
def calculator(expression: str) -> int:
    a, sign, b = expression.split(" ")
    return int(a) + int(b) if sign == "+" else int(a) * int(b)
"""


def test_a_loop_of_tools(ask: Ask) -> None:
    loop = LOOPS["two_at_once"]
    answer = ask(loop.question, "--functions", CALCULATOR)
    assert answer.stdout.strip() == loop.answer, answer.stderr


def test_an_error_is_told(ask: Ask) -> None:
    answer = ask(SUM, "-o", "frequency_penalty", "2", "-o", "seed", "1", "-o", "max_tokens", "0")
    assert answer.returncode == 1
    assert "max_tokens" in answer.stderr
