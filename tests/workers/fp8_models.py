"""Small random models whose weights are 8-bit floats, in each form that checkpoints have them, and
the same models with plain weights beside them as the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Qwen3Config, Qwen3MoeConfig
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from tests.workers.tiny_models import save_model

FP8 = torch.float8_e4m3fn
PROJECTIONS = (
    *(f"{name}_proj.weight" for name in ["q", "k", "v", "o", "gate", "up", "down"]),
    *(f"{name}_proj.weight" for name in ["q_a", "q_b", "kv_b"]),
    "kv_a_proj_with_mqa.weight",
    *(f"{name}.weight" for name in ["in_proj_qkvz", "in_proj_qkv", "in_proj_z", "out_proj"]),
    *(f"{name}.weight" for name in ["w1", "w2", "w3"]),
)
Tensors = dict[str, torch.Tensor]

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "eos_token_id": 1,
    "bos_token_id": 0,
}


def fp8_config(*, moe: bool = True, **changes: Any) -> Any:
    """A model all of whose matrices have sides that are multiples of 32."""
    if not moe:
        return Qwen3Config(**SIZES | changes)
    sparse = {
        "moe_intermediate_size": 64, "num_experts": 6, "num_experts_per_tok": 3,
        "norm_topk_prob": True, "mlp_only_layers": [1],
    }  # fmt: skip
    return Qwen3MoeConfig(**SIZES | sparse | changes)


def save_block_fp8(
    config: Any,
    folder: Path,
    *,
    block: tuple[int, int] = (32, 32),
    skipped: tuple[str, ...] = ("lm_head",),
    form: str = "hub",
    seed: int = 0,
) -> torch.nn.Module:
    """A model as transformers' FineGrainedFP8 quantizes it, and its dequantized weights in fp32.

    Args:
        skipped: ``modules_to_not_convert``.
        form: "hub": experts and their scales one by one; "saved": scales packed, as transformers 5
            saves them; "packed": both packed, as its modules have them.
    """
    save_model(config, folder, seed)
    return quantize_folder(folder, block=block, skipped=skipped, form=form)


def quantize_folder(
    folder: Path,
    *,
    block: tuple[int, int],
    skipped: tuple[str, ...] = ("lm_head",),
    form: str = "hub",
) -> torch.nn.Module:
    """Quantize a folder of plain weights; arguments and result as of `save_block_fp8`."""
    plain = load_file(folder / "model.safetensors")
    tensors, dequantized, said = quantized(plain, block=block, skipped=skipped)
    oracle = load_oracle(folder, dequantized)
    if form != "hub":
        tensors = packed(tensors, "weight_scale_inv")
    if form == "packed":
        tensors = packed(tensors, "weight")
    write(folder, tensors, said)
    return oracle


def quantized(
    plain: Tensors, *, block: tuple[int, int], skipped: tuple[str, ...]
) -> tuple[Tensors, Tensors, dict[str, Any]]:
    """Weights in 8 bits by the Hub's names, what they are worth, and what config.json says."""
    quantizer = FineGrainedFP8HfQuantizer(
        FineGrainedFP8Config(weight_block_size=block, modules_to_not_convert=list(skipped))
    )
    tensors: Tensors = {}
    for name, value in plain.items():
        is_skipped = any(name.startswith(f"{module}.") for module in skipped)
        is_fp8 = name.endswith(PROJECTIONS) and not is_skipped
        tensors |= Fp8Quantize(quantizer).convert({name: value}) if is_fp8 else {name: value}
    dequantized = {
        name: Fp8Dequantize(quantizer)._dequantize_one(value, tensors[f"{name}_scale_inv"])
        if value.dtype == FP8
        else value
        for name, value in tensors.items()
        if not name.endswith("_scale_inv")
    }
    return tensors, dequantized, quantizer.quantization_config.to_dict()


def save_scaled_fp8(
    config: Any,
    folder: Path,
    said: dict[str, Any],
    *,
    scale_shape: tuple[int, ...],
    beside: tuple[str, ...] = (),
    seed: int = 0,
) -> torch.nn.Module:
    """A model with ``weight_scale`` beside its weights, and its dequantized weights in fp32.

    Args:
        said: of config.json.
        scale_shape: (-1, 1) is a scale a row; else one for the tensor.
        beside: further tensors that each module has, which say nothing of its weights.
    """
    save_model(config, folder, seed)
    tensors, dequantized = {}, {}
    for name, value in load_file(folder / "model.safetensors").items():
        tensors[name] = dequantized[name] = value
        if not name.endswith(PROJECTIONS):
            continue
        largest = value.abs().amax(dim=1, keepdim=True) if -1 in scale_shape else value.abs().max()
        scale = largest / torch.finfo(FP8).max
        tensors[name] = (value / scale).to(FP8)
        tensors[f"{name}_scale"] = scale.reshape(scale_shape)
        dequantized[name] = tensors[name].float() * scale
        for other in beside:
            tensors[name.replace("weight", other)] = torch.full((), 7.0)
    oracle = load_oracle(folder, dequantized)
    write(folder, tensors, said)
    return oracle


def load_oracle(folder: Path, tensors: Tensors) -> torch.nn.Module:
    """transformers' model of the folder in fp32 with these weights, by the Hub's names."""
    write(folder, tensors, None)
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def packed(tensors: Tensors, ending: str) -> Tensors:
    """The same with all experts' tensors of one ending in two tensors a layer."""
    out = dict(tensors)
    suffix = ending.removeprefix("weight")
    layers = [name for name in tensors if name.endswith(f".mlp.experts.0.gate_proj.{ending}")]
    for prefix in (name.partition("0.gate_proj")[0] for name in layers):
        count = sum(n.startswith(prefix) and n.endswith(f"gate_proj.{ending}") for n in tensors)
        gate, up, down = (
            stacked([out.pop(f"{prefix}{expert}.{name}_proj.{ending}") for expert in range(count)])
            for name in ("gate", "up", "down")
        )
        out[f"{prefix}gate_up_proj{suffix}"] = stacked([gate, up], dim=1)
        out[f"{prefix}down_proj{suffix}"] = down
    return out


def stacked(parts: list[torch.Tensor], dim: int | None = None) -> torch.Tensor:
    """Stacked, or joined along ``dim``, byte by byte: torch does not do so with 8-bit floats."""
    dtype = parts[0].dtype
    raw = [part.view(torch.uint8) for part in parts] if dtype == FP8 else parts
    return (torch.stack(raw) if dim is None else torch.cat(raw, dim)).view(dtype)


def write(folder: Path, tensors: Tensors, quantization: dict[str, Any] | None) -> None:
    """Put weights and what config.json says of them into a folder."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw.pop("quantization_config", None)
    if quantization is not None:
        raw["quantization_config"] = quantization
    path.write_text(json.dumps(raw))
