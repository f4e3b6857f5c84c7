"""What a model folder says of 4-bit integers: GPTQ, AWQ, and compressed-tensors' `pack-quantized`.

Owns what of each method is read. Torch-free. Knows nothing of files, and not which modules there
are.
"""

from __future__ import annotations

from typing import Any

from moe.base.int4_format import Int4Format
from switchyard.model_files import shown
from workers.config_json.quantization_refusals import only, refusal
from workers.config_json.quantized_modules import ModuleNames, Quantization

_GROUPS = (32, 64, 128)
_OFF = (None, False)


def read_gptq(key: str, said: dict[str, Any]) -> Quantization:
    """transformers' GPTQConfig, and GPTQModel's QuantizeConfig, which it is read with.

    Raises:
        ValueError: one line naming what is not built, or a key whose value makes no sense.
    """
    for name, allowed in (
        ("bits", (4,)), ("group_size", (*_GROUPS, -1)), ("sym", (None, True, False)),
        ("desc_act", _OFF), ("checkpoint_format", (None, "gptq", "gptq_v2")),
        ("pack_dtype", (None, "int32")), ("lm_head", _OFF), ("is_marlin_format", _OFF),
        ("modules_in_block_to_quantize", (None, [])), ("rotation", (None, "")),
        ("adapter", (None, {})),
    ):  # fmt: skip
        only(key, "gptq", said, name, allowed)
    return Quantization(
        weight_format=Int4Format(
            group=_group(said["group_size"]),
            zero_points=said.get("sym") is False,
            stored=said.get("checkpoint_format") or "gptq",
        ),
        skipped=ModuleNames.read(f"{key}.dynamic", [*_dynamic(key, said), *_not_converted(said)]),
    )


def read_awq(key: str, said: dict[str, Any]) -> Quantization:
    """transformers' AwqConfig.

    Raises:
        ValueError: as `read_gptq` does.
    """
    for name, allowed in (
        ("bits", (4,)), ("group_size", (*_GROUPS, -1)), ("zero_point", (True,)),
        ("version", ("gemm", "GEMM")),
    ):  # fmt: skip
        only(key, "awq", said, name, allowed)
    return Quantization(
        weight_format=Int4Format(group=_group(said["group_size"]), zero_points=True, stored="awq"),
        skipped=ModuleNames.read(
            f"{key}.modules_to_not_convert", said.get("modules_to_not_convert")
        ),
    )


def read_pack_quantized(key: str, group: dict[str, Any]) -> Int4Format:
    """A group of `config_groups`, which has `weights`.

    Raises:
        ValueError: as `read_gptq` does.
    """
    method, weights = "compressed-tensors", group["weights"]
    for name in ("input_activations", "output_activations"):
        only(key, method, group, name, (None,))
    for name, allowed in (
        ("type", ("int",)), ("num_bits", (4,)), ("symmetric", (None, True, False)),
        ("dynamic", _OFF), ("strategy", ("group", "channel")),
        # "weight": the columns were quantized in another order, but groups are of those in order.
        ("actorder", (None, "weight", "static")),
    ):  # fmt: skip
        only(f"{key}.weights", method, weights, name, allowed)
    is_grouped = weights["strategy"] == "group"
    sizes = _GROUPS if is_grouped else (None, -1)
    only(f"{key}.weights", method, weights, "group_size", sizes)
    return Int4Format(
        group=weights["group_size"] if is_grouped else None,
        zero_points=weights.get("symmetric") is False,
        stored="compressed",
    )


def _group(size: int) -> int | None:
    return None if size == -1 else size


def _dynamic(key: str, said: dict[str, Any]) -> list[str]:
    """Expressions of modules that are left as they are; others ask for another format."""
    dynamic = said.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise ValueError(f"{key}.dynamic is {shown(dynamic)}; it must be an object")
    for pattern in dynamic:
        if not pattern.startswith("-:"):
            raise refusal(key, "gptq", f"with dynamic {shown(pattern)}")
    return [f"re:{pattern.removeprefix('-:')}" for pattern in dynamic]


def _not_converted(said: dict[str, Any]) -> list[Any]:
    names = said.get("modules_to_not_convert") or []
    return names if isinstance(names, list) else [names]
