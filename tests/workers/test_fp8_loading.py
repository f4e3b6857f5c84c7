"""8-bit weights are read strictly and rank-locally, or made from others as they are read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moe.base.weight import Weight
from tests.refusals import refusal
from tests.workers.fp8_models import FP8, fp8_config, save_block_fp8, write
from tests.workers.steps import prefill_step, start_rank, step_logits
from tests.workers.test_weight_loading import layout, model_of
from tests.workers.tiny_models import save_model
from workers.checkpoint import Checkpoint
from workers.weight_loading import expected_bytes, load_weights, make_up_weights

LAYOUTS = [(1, 1, None), (2, 1, None), (2, 1, 1), (1, 2, 2)]
QUERY = "model.layers.0.self_attn.q_proj.weight"
GATE = "model.layers.0.mlp.experts.3.gate_proj.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 8-bit weights in blocks of 32 × 32, experts 64 wide."""
    path = tmp_path_factory.mktemp("fp8")
    save_block_fp8(fp8_config(), path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model before it was quantized."""
    path = tmp_path_factory.mktemp("plain")
    save_model(fp8_config(), path)
    return path


@pytest.mark.parametrize(("tp", "dp", "ep"), LAYOUTS)
def test_a_rank_reads_its_own_bytes_and_no_more(
    folder: Path, tp: int, dp: int, ep: int | None
) -> None:
    parallel = layout(tp, dp, ep)
    whole = load_file(folder / "model.safetensors")
    filled = {name: torch.zeros(each.shape, dtype=torch.bool) for name, each in whole.items()}
    for rank in range(parallel.world_size):
        model, checkpoint = model_of(folder, parallel, rank), Checkpoint(folder, fp8=True)
        loaded = load_weights(model.checkpoint_slices(), checkpoint)
        held = sum(each.nbytes for each in model.parameters())
        assert loaded.bytes_read == expected_bytes(model.checkpoint_slices(), checkpoint) == held
        for piece in model.checkpoint_slices():
            if piece.target is None:
                continue
            assert piece.target.dtype == whole[piece.name].dtype
            assert piece.is_fp8 == (piece.target.dtype == FP8)
            assert torch.equal(piece.target.float(), whole[piece.name][piece.index].float())
            filled[piece.name][piece.index] = True
    assert all(mask.all() for mask in filled.values()), "a part of the checkpoint is on no rank"


@pytest.mark.parametrize(("tp", "dp", "ep"), LAYOUTS)
def test_weights_made_at_load_are_those_that_transformers_makes(
    folder: Path,
    plain: Path,
    tp: int,
    dp: int,
    ep: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each rank makes its own, from the values that it needs."""
    monkeypatch.setattr("workers.scale_blocks._MADE_SIZES", (32,))
    parallel = layout(tp, dp, ep)
    for rank in range(parallel.world_size):
        read, made = (
            model_of(folder, parallel, rank),
            model_of(plain, parallel, rank, quantize="fp8"),
        )
        load_weights(read.checkpoint_slices(), Checkpoint(folder, fp8=True))
        loaded = load_weights(made.checkpoint_slices(), Checkpoint(plain))
        for (name, ours), theirs in zip(made.named_parameters(), read.parameters(), strict=True):
            assert ours.dtype == theirs.dtype, name
            if ours.dtype == FP8:
                # The reciprocal of a scale is rounded there: a value in the middle may differ.
                steps = ours.view(torch.int8).int() - theirs.view(torch.int8).int()
                assert steps.abs().max() <= 1, name
                assert (steps != 0).float().mean() < 1e-3, name
            else:
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        sizes = [each.numel() * 4 for n, each in made.named_parameters() if "scales" not in n]
        assert loaded.bytes_read == sum(sizes)


def change_tensors(folder: Path, path: Path, change: Callable[[Tensors], Any]) -> Path:
    """A copy of the folder with other tensors."""
    shutil.copytree(folder, path)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    config = (path / "config.json").read_text()
    write(path, tensors, None)
    (path / "config.json").write_text(config)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{QUERY}_scale_inv"), f"{QUERY}_scale_inv is missing"),
        (lambda t: t.pop(f"{GATE}_scale_inv"), f"{GATE}_scale_inv is missing"),
        (
            lambda t: t.update({QUERY: t[QUERY].float()}),
            f"{QUERY} has type F32, config.json asks for F8_E4M3",
        ),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(FP8)}),
            "model.norm.weight has type F8_E4M3, config.json asks for BF16, F16 or F32",
        ),
        (
            lambda t: t.update({f"{QUERY}_scale_inv": torch.ones(4, 1)}),
            f"{QUERY}_scale_inv has shape [4, 1], config.json asks for [4, 2]",
        ),
        (
            lambda t: t.update({f"{QUERY}_scale_inv": torch.ones(4, 2).to(FP8)}),
            f"{QUERY}_scale_inv has type F8_E4M3, config.json asks for",
        ),
        (
            lambda t: t.update({"model.norm.input_scale": torch.ones(1)}),
            "model.norm.input_scale is not part",
        ),
        (
            lambda t: t.update({f"{QUERY}_scale": torch.ones(1)}),
            f"{QUERY}_scale is not part",
        ),
    ],
)
def test_what_does_not_fit_has_its_one_line(
    change: Callable[[Tensors], Any], words: str, folder: Path, tmp_path: Path
) -> None:
    copy = change_tensors(folder, tmp_path / "copy", change)
    model = model_of(copy, layout(1, 1, None), 0)
    slices = list(model.checkpoint_slices())
    assert words in refusal(lambda: load_weights(slices, Checkpoint(copy, fp8=True)))


def test_scales_of_activations_and_of_a_cache_are_not_needed(folder: Path, tmp_path: Path) -> None:
    beside = {
        f"model.layers.0.self_attn.{name}": torch.ones(())
        for name in ("q_proj.input_scale", "k_proj.k_scale", "v_proj.v_scale", "k_scale")
    }
    copy = change_tensors(folder, tmp_path / "copy", lambda tensors: tensors.update(beside))
    model = model_of(copy, layout(1, 1, None), 0)
    loaded = load_weights(model.checkpoint_slices(), Checkpoint(copy, fp8=True))
    assert loaded.bytes_read == sum(each.nbytes for each in model.parameters())


def test_an_fp8_folder_without_its_weights_is_made_up(folder: Path) -> None:
    """In the format that its config.json tells of."""
    rank = start_rank(folder, load_format="dummy")
    read = start_rank(folder)
    ours, theirs = (
        {name: (each.shape, each.dtype) for name, each in one.model.named_parameters()}  # type: ignore[attr-defined]
        for one in (rank, read)
    )
    assert ours == theirs
    assert rank.loaded.bytes_read == 0
    assert step_logits(rank, prefill_step(0, 0, [5, 7, 9], [1])).isfinite().all()


def test_8_bit_weights_that_config_json_does_not_tell_of(folder: Path) -> None:
    assert "has type F8_E4M3, supported are BF16, F16, F32" in refusal(lambda: Checkpoint(folder))


def test_made_up_weights_are_quantized(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same numbers in any layout, so that whole blocks are equal."""
    monkeypatch.setattr("workers.scale_blocks._MADE_SIZES", (32,))
    single = model_of(plain, layout(1, 1, None), 0, quantize="fp8")
    make_up_weights(single.checkpoint_slices(), seed=3)
    exact = model_of(plain, layout(1, 1, None), 0)
    make_up_weights(exact.checkpoint_slices(), seed=3)
    parts = {piece.name: piece.target for piece in exact.checkpoint_slices()}
    whole = {piece.name: piece.target for piece in single.checkpoint_slices()}
    quantized = {name for name, target in whole.items() if isinstance(target, Weight)}
    assert {QUERY, GATE} <= quantized
    for name, target in whole.items():
        if isinstance(target, Weight):
            # Half of the distance between two numbers of three bits, and scales of a block.
            error = (target.plain(torch.float32) - parts[name]).abs().max()
            assert 0 < error <= parts[name].abs().max() / 28
        else:
            assert torch.equal(target, parts[name])
    for rank in range(2):
        part = model_of(plain, layout(2, 1, None), rank, quantize="fp8")
        make_up_weights(part.checkpoint_slices(), seed=3)
        for piece in part.checkpoint_slices():
            if isinstance(piece.target, Weight):
                theirs = whole[piece.name].plain(torch.float32)[piece.index]
                assert torch.equal(piece.target.plain(torch.float32), theirs)
