"""Which checks a start runs, and the one line of one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from triton.errors import TritonError

from switchyard.worker.v1 import worker_pb2
from tests.workers.self_check.rank import make_rank
from tests.workers.steps import interpreted, start_rank
from tests.workers.tiny_models import random_config, save_model
from workers.rank import kv_sizing
from workers.self_check.checks import CHECKS, kernel_checks

LINE = (
    r"self-check: embedding of \d+, 1 row: share of wrong ones 1, allowed 0, so answers would be "
    r"wrong; on cpu with Triton [\d.]+ and torch \S+: report this line; with "
    "--self-check off it serves all the same"
)


def unchecked(module: nn.Module) -> list[str]:
    """Modules with kernels that no check of theirs or of a module around them runs."""
    if type(module) in CHECKS:
        return []
    own = [type(module).__name__] if getattr(module, "context", None) is not None else []
    return own + [name for child in module.children() for name in unchecked(child)]


@pytest.mark.parametrize("moe", [False, True])
def test_every_module_with_kernels_is_checked(moe: bool) -> None:
    model = make_rank(moe=moe).model
    assert isinstance(model, nn.Module)
    assert not unchecked(model)
    stranger = nn.Module()
    stranger.context = make_rank().build.context  # type: ignore[assignment]
    assert unchecked(nn.Sequential(stranger)) == ["Module"]


def test_one_module_of_each_kind_and_shape_is_checked() -> None:
    """Layers are alike, but that one has no experts."""
    rank = make_rank()
    assert isinstance(rank.model, nn.Module)
    names = [name for name, _ in kernel_checks(rank.model, rank.setting)]
    assert names == [
        "Embedding", "Attention", "SparseMoeBlock", "RMSNorm", "DenseMLP", "LMHead",
    ]  # fmt: skip


class NoRoomError(TritonError):
    """As Triton's, whose text is its own."""

    def __str__(self) -> str:
        return "out of resource: shared memory"


@pytest.mark.interpreter
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")
def test_a_start_with_a_wrong_kernel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the warm-up, and unless it was asked for."""
    config = random_config(1, moe=False)
    save_model(config, tmp_path)
    warm_ups: list[dict[str, int]] = []

    def warm_up_steps(**shape: int) -> Iterator[worker_pb2.StepRequest]:
        warm_ups.append(shape)
        return iter(())

    monkeypatch.setattr(kv_sizing, "warm_up_steps", warm_up_steps)
    monkeypatch.setattr("workers.layers.embedding.embed", lambda *_, out_TH, **__: out_TH.fill_(9))
    with pytest.raises(ValueError, match=f"^{LINE}$"):
        start_rank(tmp_path, interpreted(), self_check="on")
    assert not warm_ups
    start_rank(tmp_path, interpreted(), self_check="off")
    assert warm_ups


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("PassManager::run failed\nin pass 7"), "PassManager::run failed"),
        (NoRoomError(), "out of resource: shared memory"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_kernel_that_does_not_run_is_one_line(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("workers.layers.embedding.embed", launch)
    with pytest.raises(
        ValueError, match=rf"^self-check: Embedding: does not run: {reason}; on"
    ) as refusal:
        make_rank(max_tokens=4).check()
    assert "\n" not in str(refusal.value)


def test_a_lack_of_memory_is_no_kernel_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("workers.layers.embedding.embed", launch)
    with pytest.raises(torch.OutOfMemoryError):
        make_rank(max_tokens=4).check()
