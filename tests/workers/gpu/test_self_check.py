"""The self-check of a start on a GPU: right kernels pass it, fast, and nothing of it stays."""

from __future__ import annotations

import gc
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from demo import CHECKPOINT
from tests.workers.gpu.driver import CONFIGS, compilations
from tests.workers.steps import start_rank
from workers.rank import startup
from workers.self_check.finding import Finding

pytestmark = pytest.mark.gpu

FP8 = {"quantization": "fp8"}
FP8_CACHE = {"kv_cache_dtype": "fp8_e4m3"}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3-30b-a3b", {}),
    ("qwen3-30b-a3b", FP8 | FP8_CACHE),
    ("qwen3-30b-a3b", {"dtype": "float32"}),
    ("qwen3-30b-a3b", {"moe_runner": "legacy", "cuda_graphs": "off"}),
    ("qwen3-8b", FP8),
    ("qwen3-235b-a22b", FP8),
]
SECONDS = 0.5


def two_layers(name: str, folder: Path) -> Path:
    """A folder of a model's sizes."""
    raw = json.loads((CONFIGS / name / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 2}))
    return folder


def start(folder: Path, **settings: Any) -> None:
    usual = {"device": "cuda", "dtype": "bfloat16", "max_batch_size": 64, "num_blocks": 4096}
    usual |= {"max_num_batched_tokens": 2048, "max_model_len": 4096, "self_check": "on"}
    start_rank(folder, **usual | settings)


@pytest.mark.parametrize(("name", "settings"), MODELS, ids=str)
def test_right_kernels_pass_within_half_a_second(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes the comparisons that are closest to their limits. A start without the check has
    compiled all kernels that the check runs."""
    folder = two_layers(name, tmp_path)
    settings = {"load_format": "dummy", **settings}
    start(folder, **settings, self_check="off")
    seconds, found = [], []
    check_rank, is_right = startup.check_rank, Finding.is_right.fget
    assert is_right is not None

    def timed(*args: Any, **kwargs: Any) -> None:
        gc.collect()  # of the start before
        build = args[4]
        build.context.workspace.release()  # of the steps that were compiled ahead
        ones = torch.ones(64, 64, device="cuda")
        (ones @ ones).sum().item()  # the library's workspace of this stream
        allocated, began = torch.cuda.memory_allocated(), time.perf_counter()
        check_rank(*args, **kwargs)
        seconds.append(time.perf_counter() - began)
        assert torch.cuda.memory_allocated() == allocated

    def noted(finding: Finding) -> bool:
        found.append(finding)
        return bool(is_right(finding))

    monkeypatch.setattr(startup, "check_rank", timed)
    monkeypatch.setattr(Finding, "is_right", property(noted))
    with compilations() as compiled:
        start(folder, **settings, self_check="on")
    start(folder, **settings, self_check="on")
    found.sort(key=lambda each: each.error / each.allowed if each.allowed else 0.0)
    closest = "\n".join(map(str, found[-8:]))
    sys.stdout.write(f"\n{len(found) // 2} comparisons in {seconds} s\n{closest}\n{compiled}\n")
    assert seconds[-1] < SECONDS
    assert not compiled


def test_right_kernels_of_the_demo_pass() -> None:
    for settings in ({}, FP8 | FP8_CACHE):
        start(CHECKPOINT, max_model_len=1024, **settings)


def test_a_wrong_kernel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = "moe.kernels.experts.down_vector"
    monkeypatch.setattr(vector, lambda *_, out_PH, **__: out_PH.fill_(1.0))
    card = re.escape(torch.cuda.get_device_name())
    line = rf"^self-check: sum of experts .* on {card} with Triton .*: report this line"
    with pytest.raises(ValueError, match=line):
        start(two_layers("qwen3-30b-a3b", tmp_path), load_format="dummy")
