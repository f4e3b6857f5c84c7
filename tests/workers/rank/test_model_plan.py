"""A rank learns whether its model fits before anything of it is made."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.fp8_models import fp8_config, save_block_fp8
from tests.workers.memory import resident_bytes
from tests.workers.steps import prefill_step, start_rank, step_logits
from tests.workers.tiny_models import random_config, save_model
from workers import __main__ as launcher
from workers.launcher.reports import REFUSED
from workers.models.base import BuildContext
from workers.models.decoder import Decoder
from workers.rank import model_plan, startup

Devices = list[torch.device]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = random_config(3, moe=True)
    config.tie_word_embeddings, config.decoder_sparse_step = False, 1
    save_model(config, tmp_path)
    return tmp_path


@pytest.fixture
def built_on(monkeypatch: pytest.MonkeyPatch) -> Devices:
    """The devices that models were built on."""
    devices: Devices = []

    def spy(config: Any, build: BuildContext) -> Any:
        devices.append(build.device)
        return Decoder(config, build)

    monkeypatch.setattr(startup, "Decoder", spy)
    monkeypatch.setattr(model_plan, "Decoder", spy)
    return devices


def change(folder: Path, **values: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **values}))


def spare(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(startup, "unused_bytes", lambda device, ranks_here: num_bytes)


def test_what_is_counted_is_what_is_then_held(
    folder: Path, built_on: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = start_rank(folder)
    assert [device.type for device in built_on] == ["meta", "cpu"]
    assert isinstance(rank.model, torch.nn.Module)
    parts = (*rank.model.parameters(), *rank.model.buffers())
    held = sum(each.nbytes for each in parts)
    spare(monkeypatch, held)
    start_rank(folder)
    spare(monkeypatch, held - 1)
    with pytest.raises(ValueError, match=r"a rank's weights take 0\.0 GiB .* --quantization fp8"):
        start_rank(folder)


def test_8_bit_weights_are_counted_with_their_scales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_block_fp8(fp8_config(), tmp_path)
    rank = start_rank(tmp_path)
    assert isinstance(rank.model, torch.nn.Module)
    parts = (*rank.model.parameters(), *rank.model.buffers())
    spare(monkeypatch, sum(each.nbytes for each in parts) - 1)
    with pytest.raises(ValueError, match=r"to spare; raise --tp"):
        start_rank(tmp_path)


def test_a_model_beyond_the_memory_is_told_before_it_is_made(
    folder: Path, built_on: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare(monkeypatch, 16 << 30)
    change(folder, hidden_size=1 << 18, moe_intermediate_size=1 << 24)
    with pytest.raises(ValueError, match=r"weights take \d{5,}\.\d GiB .* has 16.0 GiB to spare"):
        start_rank(folder, load_format="dummy")
    assert [device.type for device in built_on] == ["meta"]


def test_tables_of_positions_count_and_their_flag_is_named(
    folder: Path, built_on: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare(monkeypatch, 4 << 30)
    change(folder, max_position_embeddings=1 << 27)
    with pytest.raises(ValueError, match=r"tables of 134217728 positions \d+.*--max-model-len"):
        start_rank(folder)
    assert [device.type for device in built_on] == ["meta"]
    assert start_rank(folder, max_model_len=64).max_model_len == 64


def test_a_context_takes_what_its_sequences_need(folder: Path) -> None:
    """Neither rows of tables nor blocks that no sequence has come to."""
    expected = step_logits(start_rank(folder), prefill_step(1, 0, [5, 6, 7], [2]))
    change(folder, max_position_embeddings=10_000_000)
    before = resident_bytes()
    rank = start_rank(folder, num_blocks=None)
    assert rank.max_model_len == 10_000_000
    assert torch.equal(step_logits(rank, prefill_step(1, 0, [5, 6, 7], [2])), expected)
    assert resident_bytes() - before < 256 << 20  # whole tables would take more


def test_a_model_unlike_its_checkpoint_is_refused_before_ranks_start(
    folder: Path,
    built_on: Devices,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def started(*arguments: object) -> int:
        starts.append(arguments)
        return 0

    starts: list[object] = []
    monkeypatch.setattr(launcher, "_run", started)
    monkeypatch.setattr(sys, "argv", ["workers", "--model", str(folder)])
    assert (launcher.main(), len(starts)) == (0, 1)
    change(folder, num_hidden_layers=1000, layer_types=None)
    assert (launcher.main(), len(starts)) == (REFUSED, 1)
    assert re.search(r"tensor model\.layers\.\d+\.\S+ is missing", capsys.readouterr().err)
    change(folder, num_hidden_layers=1, vocab_size=99)
    assert (launcher.main(), len(starts)) == (REFUSED, 1)
    words = r"model\.safetensors: tensor \S+ has shape \[\d+, \d+\], config.json asks for \[99, "
    assert re.search(words, capsys.readouterr().err)
    assert {device.type for device in built_on} == {"meta"}
