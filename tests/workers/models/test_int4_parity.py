"""Models of 4-bit weights against transformers with the same weights dequantized, in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.config_json.test_int4_methods import AWQ, GPTQ, pack_quantized
from tests.workers.fp8_models import fp8_config
from tests.workers.int4_models import save_int4
from tests.workers.models.test_fp8_parity import check, held_bytes
from tests.workers.steps import interpreted, prefill_step, start_rank, step_logits
from tests.workers.test_weight_loading import layout
from workers.rank.description import describe, summary

FORMS: dict[str, dict[str, Any]] = {
    "gptq": {**GPTQ, "group_size": 32},
    "gptq asymmetric": {**GPTQ, "group_size": 32, "sym": False},
    "gptq_v2": {**GPTQ, "group_size": 64, "sym": False, "checkpoint_format": "gptq_v2"},
    "gptq by row": {**GPTQ, "group_size": -1, "sym": False},
    "awq": {**AWQ, "group_size": 32},
    "packed": pack_quantized(),
    "packed asymmetric": pack_quantized(symmetric=False),
    "packed by row": pack_quantized(strategy="channel", group_size=None),
}


@pytest.mark.parametrize("moe_runner", ["fused", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form(form: str, moe_runner: str, tmp_path: Path) -> None:
    oracle = save_int4(fp8_config(), tmp_path, FORMS[form])
    check(start_rank(tmp_path, moe_runner=moe_runner), oracle)


@pytest.mark.parametrize("scale_type", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", ["gptq", "packed asymmetric"])
def test_scales_keep_their_type(form: str, scale_type: torch.dtype, tmp_path: Path) -> None:
    oracle = save_int4(fp8_config(moe=False), tmp_path, FORMS[form], scale_type=scale_type)
    rank = start_rank(tmp_path)
    check(rank, oracle)
    named = rank.model.named_parameters()  # type: ignore[attr-defined]
    assert {each.dtype for name, each in named if name.endswith("scales")} == {scale_type}


def test_inputs_without_the_numbers_of_their_groups(tmp_path: Path) -> None:
    oracle = save_int4(fp8_config(), tmp_path, FORMS["gptq"], group_index=False)
    check(start_rank(tmp_path), oracle)


@pytest.mark.parametrize(
    ("said", "skipped"),
    [
        (
            {**FORMS["gptq"], "dynamic": {
                r"-:.*layers\.0\.self_attn": {}, r"-:.*layers\.2\.mlp\.experts": {},
                r"-:model\.layers\.1\.": {},
            }},
            ("model.layers.0.self_attn", "model.layers.2.mlp.experts", "model.layers.1"),
        ),
        (
            {**FORMS["awq"], "modules_to_not_convert": ["layers.0.mlp", "o_proj"]},
            ("model.layers.0.mlp", *(f"model.layers.{n}.self_attn.o_proj" for n in range(3))),
        ),
        (
            {**FORMS["packed"], "ignore": ["lm_head", "re:.*self_attn.*"]},
            tuple(f"model.layers.{layer}.self_attn" for layer in range(3)),
        ),
    ],
    ids=["gptq", "awq", "packed"],
)  # fmt: skip
def test_modules_that_are_not_converted(
    said: dict[str, Any], skipped: tuple[str, ...], tmp_path: Path
) -> None:
    oracle = save_int4(fp8_config(), tmp_path, said, skipped=skipped)
    check(start_rank(tmp_path), oracle)


@pytest.mark.parametrize(
    ("form", "label"),
    [
        ("packed", "int4 by 32"),
        ("packed by row", "int4 by row"),
        ("awq", "int4 by 32 with zero points"),
    ],
)
def test_its_roofline_counts_every_byte(form: str, label: str, tmp_path: Path) -> None:
    """Of all matrices, scales and zero points, as the rank holds them."""
    said = {**FORMS[form]}
    key = "modules_to_not_convert" if form == "awq" else "ignore"
    skipped = ["lm_head", "model.layers.2.self_attn.o_proj", "model.layers.1.mlp"]
    said[key] = skipped
    save_int4(fp8_config(), tmp_path, said, skipped=tuple(skipped))
    rank = start_rank(tmp_path)
    assert describe(rank, layout(1, 1, None), 0.0).quantization == label
    assert f"float32 {label}, KV cache" in summary(rank, layout(1, 1, None))
    sizes = {"experts": 0, "dense": 0}
    for name, each in rank.model.named_parameters():  # type: ignore[attr-defined]
        if not ("norm" in name or "embed_tokens" in name or "lm_head" in name):
            sizes["experts" if ".experts." in name else "dense"] += each.nbytes
    roofline = rank.runner.measure.roofline
    assert roofline.dense_bytes == sizes["dense"]
    assert roofline.expert_bytes * 6 * roofline.moe_layers == sizes["experts"]
    # Products of 4-bit weights are those of the activations' type.
    assert roofline.dense_fp8 == roofline.expert_fp8 == 0


@pytest.mark.parametrize("form", ["gptq", "awq", "packed by row"])
def test_a_folder_without_its_weights_is_made_up(form: str, tmp_path: Path) -> None:
    """In the form that its config.json tells of."""
    save_int4(fp8_config(), tmp_path, FORMS[form])
    made, read = start_rank(tmp_path, load_format="dummy"), start_rank(tmp_path)
    ours, theirs = (
        {name: (each.shape, each.dtype) for name, each in one.model.named_parameters()}  # type: ignore[attr-defined]
        for one in (made, read)
    )
    assert ours == theirs
    assert made.loaded.bytes_read == 0
    assert held_bytes(made) == held_bytes(read)
    assert step_logits(made, prefill_step(0, 0, [5, 7, 9], [1])).isfinite().all()


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("form", "moe"),
    [
        ("gptq", False),
        ("awq", True),
        ("packed by row", True),
        pytest.param("gptq", True, marks=pytest.mark.grid),
        pytest.param("awq", False, marks=pytest.mark.grid),
    ],
)
def test_kernels_compute_the_same(
    form: str, moe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted, in fp32."""
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))
    oracle = save_int4(fp8_config(moe=moe, num_hidden_layers=2), tmp_path, FORMS[form])
    check(start_rank(tmp_path, interpreted()), oracle)
