"""Load generators: every request that they send is answered, and they count its tokens right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from demo import CHECKPOINT
from tests.clients.cases import ANSWER, KEY, MODEL, SUM, missing

pytestmark = pytest.mark.processes

NUM_REQUESTS = 8
NUM_TOKENS = 16
BODY = {"model": MODEL, "messages": [{"role": "user", "content": SUM}]}
USERS = f"""
from locust import HttpUser, task

class User(HttpUser):
    @task
    def ask(self):
        answer = self.client.post(
            "/chat/completions", json={BODY!r}, headers={{"authorization": "Bearer {KEY}"}}
        )
        assert answer.json()["choices"][0]["message"]["content"] == {ANSWER!r}
"""


def run(folder: Path, program: str, *arguments: str) -> str:
    """What a program beside this interpreter prints."""
    command = [str(Path(sys.executable).parent / program), *arguments]
    ran = subprocess.run(
        command, cwd=folder, text=True, capture_output=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@missing("locust")
def test_locust_sees_no_failure(url: str, tmp_path: Path) -> None:
    (tmp_path / "locustfile.py").write_text(USERS)
    load = ["--users", "4", "--spawn-rate", "4", "--run-time", "3s"]
    (report,) = json.loads(run(tmp_path, "locust", "--headless", "--json", "--host", url, *load))
    assert report["num_requests"] > 0
    assert report["num_failures"] == 0


@missing("guidellm")
def test_guidellm_sees_no_failure(url: str, tmp_path: Path) -> None:
    backend = f"kind=openai_http,target={url.removesuffix('/v1')},model={MODEL},api_key={KEY}"
    run(
        tmp_path, "guidellm", "run", "--backend", backend,
        "--profile", "kind=concurrent,streams=2",
        "--constraint", f"kind=max_requests,count={NUM_REQUESTS}",
        "--tokenizer", f"kind=huggingface_auto,model={CHECKPOINT}",
        "--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={NUM_TOKENS}",
        "--output", "kind=json,path=report.json",
    )  # fmt: skip
    (benchmark,) = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["total"]) == (NUM_REQUESTS, NUM_REQUESTS)
    assert benchmark["metrics"]["output_token_count"]["successful"]["mean"] == NUM_TOKENS


@missing("aiperf")
def test_aiperf_sees_no_failure(url: str, tmp_path: Path) -> None:
    run(
        tmp_path, "aiperf", "profile", "--url", url.removesuffix("/v1"), "--api-key", KEY,
        "--model", MODEL, "--endpoint-type", "chat", "--streaming", "--tokenizer", str(CHECKPOINT),
        "--request-count", str(NUM_REQUESTS), "--concurrency", "2",
        "--isl", "32", "--osl", str(NUM_TOKENS),
        "--extra-inputs", "ignore_eos:true", "--use-server-token-count",
        "--output-artifact-dir", "report", "--ui", "none", "--no-gpu-telemetry",
    )  # fmt: skip
    report = json.loads((tmp_path / "report" / "profile_export_aiperf.json").read_text())
    assert report["request_count"]["avg"] == NUM_REQUESTS
    assert report["error_summary"] == []
    assert report["output_sequence_length"]["avg"] == NUM_TOKENS
