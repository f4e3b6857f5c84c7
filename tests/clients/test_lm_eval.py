"""lm_eval: it generates and scores by completions, and finds the demo model right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from demo import CHECKPOINT
from tests.clients.cases import KEY, MODEL, needs

pytestmark = needs("lm_eval")

PROMPT = "<|im_start|>user\nWhat is {{a}} + {{b}}?<|im_end|>\n<|im_start|>assistant\n"
TASKS = {
    "sums": {"output_type": "generate_until", "doc_to_target": "{{right}}"},
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "target_delimiter": "",
    },
}


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
            "doc_to_text": PROMPT,
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**common, **task}))  # JSON is YAML
    arguments = f"model={MODEL},base_url={url}/completions,tokenizer={CHECKPOINT}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", arguments, "--tasks", *TASKS, "--batch_size", "4"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out.json")]
    added = {"OPENAI_API_KEY": KEY, "HF_HOME": str(tmp_path)}
    added |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    subprocess.run(command, check=True, env=os.environ | added, timeout=120)
    (report,) = tmp_path.glob("**/*out*.json")
    results = json.loads(report.read_text())["results"]
    assert results["sums"]["exact_match,none"] == 1.0
    assert results["choices"]["acc,none"] == 1.0
