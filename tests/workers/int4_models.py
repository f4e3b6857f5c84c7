"""Small random models of 4-bit weights in each form that checkpoints have them, and the same models
with plain weights beside them as the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.moe.int4 import Numbers, awq, compressed, gptq, nearest
from tests.workers.fp8_models import PROJECTIONS, Tensors, load_oracle, write
from tests.workers.tiny_models import save_model


def save_int4(
    config: Any,
    folder: Path,
    said: dict[str, Any],
    *,
    skipped: tuple[str, ...] = (),
    scale_type: torch.dtype = torch.float16,
    seed: int = 0,
    **packing: bool,
) -> torch.nn.Module:
    """A model in the form that ``said`` of its config.json tells of, and its dequantized weights in
    fp32.

    Args:
        skipped: modules that ``said`` leaves as they are.
        packing: of the form's packer.
    """
    save_model(config, folder, seed)
    return quantize_folder(folder, said, skipped=skipped, scale_type=scale_type, **packing)


def quantize_folder(
    folder: Path,
    said: dict[str, Any],
    *,
    skipped: tuple[str, ...] = (),
    scale_type: torch.dtype = torch.float16,
    **packing: bool,
) -> torch.nn.Module:
    """Quantize a folder of plain weights; arguments and result as of `save_int4`."""
    pack, group, symmetric = _form(said, packing)
    tensors: Tensors = {}
    dequantized: Tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        is_skipped = any(name.startswith(f"{module}.") for module in skipped)
        if not name.endswith(PROJECTIONS) or is_skipped:
            tensors[name] = dequantized[name] = value
            continue
        numbers = nearest(value, group, symmetric=symmetric, scale_type=scale_type)
        dequantized[name] = numbers.exact()
        module = name.removesuffix("weight")
        tensors |= {f"{module}{part}": tensor for part, tensor in pack(numbers).items()}
    oracle = load_oracle(folder, dequantized)
    write(folder, tensors, said)
    return oracle


def _form(
    said: dict[str, Any], packing: dict[str, bool]
) -> tuple[Callable[[Numbers], Tensors], int | None, bool]:
    """How numbers are packed, in groups of how many, and whether all zero points are 8."""
    method = said["quant_method"]
    if method == "awq":
        return awq, said["group_size"], False
    if method == "gptq":
        version = 2 if said.get("checkpoint_format") == "gptq_v2" else 1
        group = None if said["group_size"] == -1 else said["group_size"]
        return lambda n: gptq(n, version=version, **packing), group, said["sym"]
    weights = said["config_groups"]["group_0"]["weights"]
    symmetric = weights["symmetric"]
    return lambda n: compressed(n, symmetric=symmetric), weights["group_size"], symmetric
