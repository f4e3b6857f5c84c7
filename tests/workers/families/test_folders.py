"""Folders as people publish them: experts in other tensors than save_pretrained's, parts for other
uses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.refusals import refusal
from tests.workers.families.draws import FAMILIES, save_family
from tests.workers.fp8_models import quantized, write
from tests.workers.steps import prefill_step, relative_error, start_rank, step_logits
from workers.config_json.model_config import ModelConfig

Tensors = dict[str, torch.Tensor]
TOKENS = [3, 14, 15, 92, 65, 35]


def packed(tensors: Tensors) -> Tensors:
    """A layer's experts in two tensors, as transformers 5's modules have them."""
    kept = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    blocks = {name.partition(".experts.")[0] for name in tensors if ".experts." in name}
    for block in blocks:
        count = sum(name.startswith(f"{block}.experts.") for name in tensors) // 3

        def all_of(matrix: str, block: str = block, count: int = count) -> torch.Tensor:
            each = (tensors[f"{block}.experts.{e}.{matrix}.weight"] for e in range(count))
            return torch.stack(list(each))

        gate_up = torch.cat([all_of("gate_proj"), all_of("up_proj")], dim=1)
        kept[f"{block}.experts.gate_up_proj"] = gate_up
        kept[f"{block}.experts.down_proj"] = all_of("down_proj")
    return kept


def per_expert(tensors: Tensors) -> Tensors:
    """Experts one by one, as 8-bit folders of Qwen3-VL-MoE have them."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        block, is_experts, matrix = name.partition(".experts.")
        if not is_experts:
            found[name] = tensor
            continue
        for expert, weight in enumerate(tensor):
            halves = weight.chunk(2) if matrix == "gate_up_proj" else [weight]
            names = ["gate_proj", "up_proj"] if matrix == "gate_up_proj" else ["down_proj"]
            for half, one in zip(halves, names, strict=True):
                found[f"{block}.experts.{expert}.{one}.weight"] = half.clone()
    return found


def turned(tensors: Tensors) -> Tensors:
    """As Qwen3-VL-MoE's folders on the Hub."""
    return {
        name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor
        for name, tensor in tensors.items()
    }


def with_speculation(tensors: Tensors) -> Tensors:
    """A layer behind the last."""
    layers = {int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")}
    return {**tensors, f"model.layers.{max(layers) + 1}.eh_proj.weight": torch.zeros(3)}


def with_mtp(tensors: Tensors) -> Tensors:
    return {**tensors, "mtp.layers.0.norm.weight": torch.zeros(3)}


def with_mtp_block(tensors: Tensors) -> Tensors:
    """As ERNIE-4.5's folders."""
    return {**tensors, "model.mtp_block.0.mlp.down_proj.weight": torch.zeros(3)}


def logits_of(folder: Path, **settings: object) -> torch.Tensor:
    return step_logits(start_rank(folder, **settings), prefill_step(0, 2, TOKENS, [4]))


@pytest.fixture(autouse=True)
def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.rank.kv_sizing.warm_up_steps", lambda **shape: iter(()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("glm4_moe", packed),
        ("olmoe", packed),
        ("qwen3_vl_moe", turned),
        ("qwen3_vl_moe", per_expert),
        ("mellum", with_mtp),
        ("ernie4_5_moe", with_mtp_block),
        ("glm4_moe", with_speculation),
    ],
)
def test_the_same_model_in_other_tensors(
    family: str, change: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    config = FAMILIES[family](random.Random(f"{family} 0"))
    save_family(config, tmp_path)
    expected = logits_of(tmp_path).clone()
    path = tmp_path / "model.safetensors"
    before = load_file(path)
    after = change(before)
    assert set(after) != set(before) or change is turned
    save_file(after, path)
    assert relative_error(logits_of(tmp_path), expected) <= 1e-6


def in_whole_blocks(family: str) -> Any:
    """A draw whose matrices have sides that are multiples of 32."""
    config = FAMILIES[family](random.Random(f"{family} 0"))
    text = config.get_text_config()
    text.hidden_size = text.intermediate_size = text.moe_intermediate_size = 64
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 4, 2, 16
    if text is not config:
        config.vision_config.out_hidden_size = 64
    return config


def test_turned_experts_are_quantized_as_they_are_read(tmp_path: Path) -> None:
    save_family(in_whole_blocks("qwen3_vl_moe"), tmp_path)
    expected = logits_of(tmp_path, quantization="fp8").clone()
    path = tmp_path / "model.safetensors"
    save_file(turned(load_file(path)), path)
    assert relative_error(logits_of(tmp_path, quantization="fp8"), expected) <= 1e-6


@pytest.mark.parametrize(
    ("family", "skipped"),
    [
        ("glm4_moe", ("lm_head", "model.layers.1.mlp.shared_experts", "model.layers.1.mlp.gate")),
        ("minimax_m2", ("lm_head", "model.layers.1.self_attn.o_proj", "gate")),
        (
            "qwen3_vl_moe",
            ("lm_head", "model.language_model.layers.1.self_attn.o_proj", "model.visual"),
        ),
    ],
)
def test_folders_of_eight_bits(family: str, skipped: tuple[str, ...], tmp_path: Path) -> None:
    """By the names of modules that they say are not."""
    save_family(in_whole_blocks(family), tmp_path)
    plain = load_file(tmp_path / "model.safetensors")
    tensors, dequantized, said = quantized(
        per_expert(plain) if family == "qwen3_vl_moe" else plain, block=(32, 32), skipped=skipped
    )
    write(tmp_path, dequantized, None)
    expected = logits_of(tmp_path).clone()
    write(tmp_path, tensors, said)
    assert relative_error(logits_of(tmp_path), expected) <= 1e-5
    write(tmp_path, tensors, {**said, "modules_to_not_convert": ["lm_head"]})
    assert skipped[1] in refusal(lambda: logits_of(tmp_path))


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "num_mtp_layers"])
def test_both_spellings_of_layers_for_speculation(key: str) -> None:
    raw = {"model_type": "glm4_moe", "head_dim": 128, "num_hidden_layers": 3}
    assert ModelConfig.from_hf(raw).left_out == ("model.layers.3.",)
    assert ModelConfig.from_hf({**raw, key: 0}).left_out == ()
    assert ModelConfig.from_hf({**raw, key: 2}).left_out == ("model.layers.3.", "model.layers.4.")


def test_the_share_of_a_head_that_is_turned_may_stand_alone() -> None:
    raw = {"model_type": "glm4_moe", "head_dim": 128}
    assert ModelConfig.from_hf(raw).ropes[0].dim == 64
    assert ModelConfig.from_hf({**raw, "partial_rotary_factor": 0.25}).ropes[0].dim == 32


def test_keys_of_a_text_model_stand_in_an_object() -> None:
    raw = json.loads(FAMILIES["qwen3_vl_moe"](random.Random(0)).to_json_string(use_diff=False))
    raw["dtype"] = "float32"
    config = ModelConfig.from_hf(raw)
    hub = {**raw, "text_config": {**raw["text_config"], "tie_word_embeddings": None}}
    assert ModelConfig.from_hf({**hub, "hidden_size": 7}) == config
    assert ModelConfig.from_hf({**hub, "new_part": 7}).unknown_keys == ("new_part",)
    line = refusal(lambda: ModelConfig.from_hf({**raw, "text_config": 3}))
    assert "text_config is 3; it must be an object" in line
    text = {**raw["text_config"], "clip_qkv": 3.0}
    assert "clip_qkv is 3.0" in refusal(lambda: ModelConfig.from_hf({**raw, "text_config": text}))


def test_types_of_mlps_are_checked() -> None:
    raw = {"model_type": "mellum", "num_hidden_layers": 2}
    config = ModelConfig.from_hf({**raw, "mlp_layer_types": ["dense", "sparse"]})
    assert config.moe_layers == (False, True)
    for wrong in (["dense"], ["dense", "moe"]):
        line = refusal(lambda wrong=wrong: ModelConfig.from_hf({**raw, "mlp_layer_types": wrong}))
        assert line.startswith("mlp_layer_types is ['dense'")
