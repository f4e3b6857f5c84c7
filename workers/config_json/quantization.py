"""What a model folder says of weights of fewer bits: their format, and which modules have none.

Owns the methods that are read, those of 8-bit floats among them: `fp8` (config.json of DeepSeek,
Qwen and transformers), `compressed-tensors` and `modelopt`; and that all others are refused by
name. Those of 4-bit integers has `int4_methods`. Torch-free. Knows nothing of files, and not which
modules there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moe.base.fp8_format import Fp8Format
from switchyard.model_files import shown
from workers.config_json.int4_methods import read_awq, read_gptq, read_pack_quantized
from workers.config_json.quantization_refusals import only, refusal
from workers.config_json.quantized_modules import ModuleNames, Quantization

MADE = Fp8Format(block=(128, 128), stored="plain")
"""What `--quantization fp8` makes, where the layout lets it have blocks of this size."""

_KEYS = ("quantization_config", "compression_config")
_MAX_BLOCK = 1 << 14


def read_quantization(raw: Mapping[str, Any]) -> Quantization | None:
    """From the contents of config.json; None where the weights are of the model's type.

    Raises:
        ValueError: one line naming the method and what of it is not built, or a key whose value
            makes no sense.
    """
    for key in _KEYS:
        if said := raw.get(key):
            method = said.get("quant_method") if isinstance(said, dict) else None
            if key == "compression_config":
                method = method or "compressed-tensors"
            read = _METHODS.get(method) if isinstance(method, str) else None
            if read is None:
                raise refusal(key, method)
            return read(key, said)
    return None


def read_modelopt_file(raw: Mapping[str, Any]) -> Quantization | None:
    """From the contents of ModelOpt's hf_quant_config.json, which stands beside config.json.

    Raises:
        ValueError: as `read_quantization` does.
    """
    said = raw.get("quantization")
    if not isinstance(said, dict) or not said.get("quant_algo"):
        return None
    return _read_modelopt("quantization", said)


def _read_fp8(key: str, said: dict[str, Any]) -> Quantization:
    """Blocks with `weight_scale_inv`: transformers' FineGrainedFP8Config."""
    block = said.get("weight_block_size")
    if block is None:
        raise refusal(key, "fp8", "without weight_block_size")
    only(key, "fp8", said, "fmt", (None, "e4m3", "float8_e4m3fn"))
    only(key, "fp8", said, "scale_fmt", (None, "float", "ue8m0"))
    only(key, "fp8", said, "expert_dtype", (None, "fp8"))
    only(key, "fp8", said, "modules_to_convert", (None, []))
    only(key, "fp8", said, "activation_scheme", (None, "dynamic", "static"))
    skipped = next(
        (name for name in ("modules_to_not_convert", "ignored_layers") if said.get(name)), "ignore"
    )
    return Quantization(
        weight_format=Fp8Format(
            block=_block(f"{key}.weight_block_size", block), suffix="_scale_inv"
        ),
        skipped=ModuleNames.read(f"{key}.{skipped}", said.get(skipped)),
    )


def _read_compressed(key: str, said: dict[str, Any]) -> Quantization:
    """One group of linear layers: compressed_tensors' QuantizationConfig."""
    method = "compressed-tensors"
    only(key, method, said, "format", ("float-quantized", "pack-quantized"))
    only(key, method, said, "transform_config", (None, {}))
    sparsity = said.get("sparsity_config") or {"format": "dense"}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise refusal(key, method, f"with sparsity_config {shown(sparsity)}")
    groups = said.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else None
    if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
        raise refusal(key, method, f"with config_groups {shown(groups)}")
    only(f"{key}.config_groups", method, group, "targets", (["Linear"],))
    only(f"{key}.config_groups", method, group, "format", (None, said["format"]))
    skipped = ModuleNames.read(f"{key}.ignore", said.get("ignore"))
    read = read_pack_quantized if said["format"] == "pack-quantized" else _read_float_quantized
    return Quantization(weight_format=read(f"{key}.config_groups", group), skipped=skipped)


def _read_float_quantized(key: str, group: dict[str, Any]) -> Fp8Format:
    method, weights, where = "compressed-tensors", group["weights"], f"{key}.weights"
    for name, allowed in (
        ("type", ("float",)), ("num_bits", (8,)), ("symmetric", (None, True)),
        ("dynamic", (None, False)), ("strategy", ("tensor", "channel", "block")),
    ):  # fmt: skip
        only(where, method, weights, name, allowed)
    formats = {"tensor": Fp8Format(stored="vector"), "channel": Fp8Format()}
    fp8 = formats.get(weights["strategy"])
    if fp8 is None:
        name = f"{where}.block_structure"
        fp8 = Fp8Format(block=_block(name, weights.get("block_structure")))
    return fp8


def _read_modelopt(key: str, said: dict[str, Any]) -> Quantization:
    """One scale a tensor: TensorRT Model Optimizer's FP8, in either file's spelling."""
    only(key, "modelopt", said, "quant_algo", ("FP8",))
    skipped = "ignore" if said.get("ignore") else "exclude_modules"
    return Quantization(
        weight_format=Fp8Format(stored="scalar"),
        skipped=ModuleNames.read(f"{key}.{skipped}", said.get(skipped)),
    )


_METHODS: dict[str, Callable[[str, dict[str, Any]], Quantization]] = {
    "fp8": _read_fp8,
    "compressed-tensors": _read_compressed,
    "modelopt": _read_modelopt,
    "gptq": read_gptq,
    "awq": read_awq,
}


def _block(name: str, value: Any) -> tuple[int, int]:
    is_pair = isinstance(value, list) and len(value) == 2
    if not is_pair or any(type(side) is not int or not 0 < side <= _MAX_BLOCK for side in value):
        raise ValueError(
            f"{name} is {shown(value)}; it must be two whole numbers from 1 to {_MAX_BLOCK}"
        )
    return value[0], value[1]
