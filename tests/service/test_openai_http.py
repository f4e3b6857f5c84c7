"""The OpenAI API over the whole service: right answers, scores that agree, a public harness."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from demo import CHECKPOINT
from tests.server import Server

pytestmark = pytest.mark.processes

MODEL = "demo"
SUM: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]
PROMPT = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"enum": ["no", "yes"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the demo model."""
    flags = ["--device", "cpu", "--max-batch-size", "16"]
    with Server(tmp_path_factory.mktemp("server"), *flags) as server:
        yield f"http://{server.http_address}"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_it_is_healthy(url: str, client: openai.OpenAI) -> None:
    with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        assert answer.status == 200
    assert [model.id for model in client.models.list()] == [MODEL]


def test_chat_answers_whole_and_streamed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=SUM, n=2)
    assert [choice.message.content for choice in answer.choices] == ["42", "42"]
    assert answer.choices[0].finish_reason == "stop"
    with client.chat.completions.create(model=MODEL, messages=SUM, stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "42"


def test_a_score_is_the_sum_of_what_was_drawn(client: openai.OpenAI) -> None:
    """The same tokens, drawn and read, have the same log-probabilities."""
    drawn = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2, logprobs=1)
    assert drawn.choices[0].text == "42"
    assert drawn.choices[0].logprobs is not None
    scored = client.completions.create(
        model=MODEL, prompt=PROMPT + "42", max_tokens=0, echo=True, logprobs=1
    )
    assert scored.choices[0].text == PROMPT + "42"
    logprobs = scored.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens or [])[-2:] == ["4", "2"]
    read, made = logprobs.token_logprobs or [], drawn.choices[0].logprobs.token_logprobs or []
    for one, other in zip(read[-2:], made, strict=True):
        assert math.isclose(one, other, abs_tol=1e-3)
    assert read[0] is None
    assert min(read[1:]) < -1.0, "not every token of a prompt is likely"


def test_output_keeps_to_a_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=SUM,
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": ANSWER}},
    )
    assert json.loads(answer.choices[0].message.content or "")["answer"] in ("no", "yes")
    assert answer.choices[0].finish_reason == "stop"


def test_a_tool_can_be_forced(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "decide", "parameters": ANSWER}}
    choice: Any = {"type": "function", "function": {"name": "decide"}}
    answer = client.chat.completions.create(
        model=MODEL, messages=SUM, max_tokens=64, tools=[tool], tool_choice=choice
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments)["answer"] in ("no", "yes")


TASKS = {
    "sums": {"output_type": "generate_until", "doc_to_target": "{{right}}"},
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "target_delimiter": "",
    },
}


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_a_public_harness_finds_the_model_right(url: str, tmp_path: Path) -> None:
    """It generates sums, and scores right and wrong ones: both of which the demo model can do."""
    rows = [
        {"a": a, "b": b, "right": str(a + b), "choices": [str(a + b + 1), str(a + b)], "label": 1}
        for a, b in ((1, 2), (17, 25), (30, 12), (44, 8), (23, 23), (9, 33))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, task in TASKS.items():
        common = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
            "test_split": "test",
            "doc_to_text": PROMPT.replace("17", "{{a}}").replace("25", "{{b}}"),
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**common, **task}))  # JSON is YAML
    arguments = f"model={MODEL},base_url={url}/v1/completions,tokenizer={CHECKPOINT}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", arguments, "--tasks", *TASKS, "--batch_size", "4"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out.json")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    subprocess.run(command, check=True, env={**os.environ, **offline}, timeout=120)
    (report,) = tmp_path.glob("**/*out*.json")
    results = json.loads(report.read_text())["results"]
    assert results["sums"]["exact_match,none"] == 1.0
    assert results["choices"]["acc,none"] == 1.0
