"""Models of 8-bit weights against transformers with the same weights dequantized, in fp32."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import FineGrainedFP8Config, Qwen3MoeForCausalLM

from tests.refusals import refusal
from tests.workers.config_json.test_quantization import COMPRESSED, MODELOPT, compressed
from tests.workers.fp8_models import FP8, SIZES, fp8_config, save_block_fp8, save_scaled_fp8
from tests.workers.steps import (
    decode_step,
    interpreted,
    prefill_step,
    relative_error,
    start_rank,
    step_logits,
)
from tests.workers.test_weight_loading import layout
from tests.workers.tiny_models import save_model
from workers.rank.description import describe, summary
from workers.rank.startup import LoadedRank


def check(rank: LoadedRank, oracle: torch.nn.Module, tolerance: float = 1e-4) -> None:
    """A prompt in chunks, then a decode."""
    tokens = torch.randint(SIZES["vocab_size"], (21,), generator=torch.manual_seed(3)).tolist()
    with torch.inference_mode():
        expected = oracle(torch.tensor([tokens])).logits[0]
    chunks = [(0, 1, [3, 9]), (1, 4, []), (4, 20, [])]
    steps = [
        prefill_step(number, 5, tokens[a:b], blocks, position=a, draw=False)
        for number, (a, b, blocks) in enumerate(chunks)
    ]
    parts = [step_logits(rank, step).clone() for step in steps]
    rank.runner.builder.last_token[5] = tokens[20]
    parts.append(step_logits(rank, decode_step(3, [5], [20], [[]])))
    assert relative_error(torch.cat(parts), expected) <= tolerance


def held_bytes(rank: LoadedRank) -> int:
    return sum(each.nbytes for each in rank.model.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("moe_runner", ["fused", "legacy"])
@pytest.mark.parametrize("form", ["hub", "saved", "packed"])
def test_each_form_of_block_fp8(form: str, moe_runner: str, tmp_path: Path) -> None:
    oracle = save_block_fp8(fp8_config(), tmp_path, form=form)
    rank = start_rank(tmp_path, moe_runner=moe_runner)
    check(rank, oracle)
    assert rank.loaded.bytes_read == held_bytes(rank)


@pytest.mark.parametrize("block", [(32, 16), (16, 32), (8, 4)])
def test_blocks_of_other_sides(block: tuple[int, int], tmp_path: Path) -> None:
    oracle = save_block_fp8(fp8_config(moe=False), tmp_path, block=block)
    check(start_rank(tmp_path), oracle)


def test_blocks_that_kernels_would_cut_are_refused(tmp_path: Path) -> None:
    save_block_fp8(fp8_config(moe=False), tmp_path, block=(8, 16))
    line = refusal(lambda: start_rank(tmp_path, interpreted()))
    assert "weight_block_size is [8, 16]" in line
    assert "multiples of 16" in line


def test_modules_that_are_not_converted(tmp_path: Path) -> None:
    """A part of a layer, experts of one layer, and all of another."""
    skipped = (
        "lm_head",
        "model.layers.0.self_attn",
        "model.layers.2.mlp.experts",
        "model.layers.1",
    )
    oracle = save_block_fp8(fp8_config(), tmp_path, skipped=skipped)
    rank = start_rank(tmp_path)
    check(rank, oracle)
    # Of three layers' attention and MLPs.
    fp8 = [each for each in rank.model.parameters() if each.dtype == FP8]  # type: ignore[attr-defined]
    assert len(fp8) == 4
    assert rank.loaded.bytes_read == held_bytes(rank)


@pytest.mark.parametrize("moe", [True, False])
@pytest.mark.parametrize(
    ("said", "scale_shape", "beside"),
    [
        (COMPRESSED, (-1, 1), ()),
        (compressed(strategy="tensor"), (1,), ("input_scale",)),
        (MODELOPT, (), ("input_scale",)),
    ],
    ids=["channel", "tensor", "modelopt"],
)
def test_scales_of_rows_and_of_tensors(
    said: dict[str, Any],
    scale_shape: tuple[int, ...],
    beside: tuple[str, ...],
    moe: bool,
    tmp_path: Path,
) -> None:
    """Widths that no block divides: 72 and 40."""
    config = fp8_config(moe=moe, hidden_size=72, intermediate_size=40)
    oracle = save_scaled_fp8(config, tmp_path, said, scale_shape=scale_shape, beside=beside)
    check(start_rank(tmp_path), oracle)


@pytest.mark.parametrize(
    ("said", "label"), [(None, "fp8 32x32"), (COMPRESSED, "fp8 by row")], ids=["block", "row"]
)
def test_its_roofline_counts_every_byte(
    said: dict[str, Any] | None, label: str, tmp_path: Path
) -> None:
    """Of all matrices and their scales, as the rank holds them."""
    skipped = ("lm_head", "model.layers.2.self_attn.o_proj", "model.layers.1.mlp")
    if said is None:
        save_block_fp8(fp8_config(), tmp_path, skipped=skipped)
    else:
        save_scaled_fp8(fp8_config(), tmp_path, said, scale_shape=(-1, 1))
    rank = start_rank(tmp_path)
    assert describe(rank, layout(1, 1, None), 0.0).quantization == label
    assert f"float32 {label}, KV cache" in summary(rank, layout(1, 1, None))
    named = rank.model.named_parameters()  # type: ignore[attr-defined]
    sizes = {"experts": 0, "dense": 0}
    for name, each in named:
        if not ("norm" in name or "embed_tokens" in name or "lm_head" in name):
            sizes["experts" if ".experts." in name else "dense"] += each.nbytes
    roofline = rank.runner.measure.roofline
    assert roofline.dense_bytes == sizes["dense"]
    assert roofline.expert_bytes * 6 * roofline.moe_layers == sizes["experts"]
    assert 0 < roofline.dense_fp8 < roofline.dense
    assert roofline.expert_fp8 == roofline.expert


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("form", "moe"),
    [
        ("block", True),
        ("row", False),
        pytest.param("block", False, marks=pytest.mark.grid),
        pytest.param("row", True, marks=pytest.mark.grid),
    ],
)
def test_kernels_compute_the_same(
    form: str, moe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted, in fp32."""
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))
    config = fp8_config(moe=moe, num_hidden_layers=2)
    if form == "block":
        oracle = save_block_fp8(config, tmp_path)
    else:
        oracle = save_scaled_fp8(config, tmp_path, COMPRESSED, scale_shape=(-1, 1))
    check(start_rank(tmp_path, interpreted()), oracle)


def test_what_is_saved_by_transformers_itself(tmp_path: Path) -> None:
    """The folder's names, shapes and types are those of its own quantized model, as it saves it."""
    save_block_fp8(fp8_config(), tmp_path / "ours", form="saved")
    folder = tmp_path / "plain"
    save_model(fp8_config(), folder)
    with patch_cuda():
        quantized = Qwen3MoeForCausalLM.from_pretrained(
            folder,
            quantization_config=FineGrainedFP8Config(
                weight_block_size=(32, 32), modules_to_not_convert=["lm_head"]
            ),
            device_map="cpu",
        )
    quantized.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name].float(), value.float()), name
    said = [
        json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]
        for name in ("ours", "theirs")
    ]
    assert said[0] == said[1]


@contextlib.contextmanager
def patch_cuda() -> Iterator[None]:
    """transformers quantizes where there is a GPU that could run it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
        yield
