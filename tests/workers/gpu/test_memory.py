"""How much memory a rank takes, and for what."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from demo import CHECKPOINT
from moe.base.workspace import Workspace
from tests.workers.gpu.driver import (
    CONFIGS,
)
from tests.workers.steps import start_rank
from workers.step.graphs import StepGraphs

pytestmark = pytest.mark.gpu


def test_the_cache_takes_what_is_left_and_no_more() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before, total = torch.cuda.mem_get_info()
    # Wanting more slots than fit makes memory the limit; so many are no batch sizes to capture.
    rank = start_rank(
        CHECKPOINT, device="cuda", memory_fraction=0.5, num_blocks=None, max_batch_size=40_000,
        max_num_batched_tokens=40_000, cuda_graphs="off",
    )  # fmt: skip
    after, _ = torch.cuda.mem_get_info()
    used = total - after
    assert used <= 0.5 * total
    assert used >= 0.3 * total, "the cache left too much unused"
    assert rank.num_blocks * rank.runner.builder.block_size > 100_000
    assert before > after


def test_qwen3_30b_leaves_an_h200_room_for_640_000_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    if total < 135 << 30 or free < 0.95 * total:
        pytest.skip("needs an H200 that nobody else uses")
    taken_bytes = []
    capture = StepGraphs.capture

    def measured(forward: Any, builder: Any, workspace: Workspace, **sizes: Any) -> StepGraphs:
        before, _ = torch.cuda.mem_get_info()
        graphs = capture(forward, builder, workspace, **sizes)
        taken_bytes.append(before - torch.cuda.mem_get_info()[0] + workspace.num_bytes)
        return graphs

    monkeypatch.setattr(StepGraphs, "capture", measured)
    rank = start_rank(
        CONFIGS / "qwen3-30b-a3b", device="cuda", dtype="bfloat16", load_format="dummy",
        memory_fraction=0.9, max_batch_size=256, max_num_batched_tokens=None, num_blocks=None,
    )  # fmt: skip
    assert rank.num_blocks * rank.runner.builder.block_size >= 640_000
    assert len(taken_bytes) == 1
    assert taken_bytes[0] <= 2 << 30
    used = total - torch.cuda.mem_get_info()[0]
    assert used <= 0.92 * total
