"""What is served, as a table for people: `switchyard models` and docs/models.md."""

from __future__ import annotations

from typing import Any, NamedTuple

from moe.config import resolve_router
from workers.attention.any import CachedAttention
from workers.attention.mla_spec import MlaSpec
from workers.config_json.model_config import ModelConfig
from workers.config_json.model_types import ModelType
from workers.families import MODEL_TYPES

_NORMS = {
    "none": "",
    "head": "norm by head",
    "head_after_rotary": "norm by head, turned before",
    "all_heads": "norm over all heads",
}
_ROUTERS = {
    "softmax": "softmax",
    "softmax_groups": "softmax, groups",
    "softmax_bias": "softmax, bias",
    "greedy": "softmax, scaled",
    "group_limited_greedy": "softmax, groups",
    "sigmoid": "sigmoid",
    "noaux_tc": "sigmoid, bias, groups",
    "sparsemixer": "sparsemixer",
}
FORMATS = (
    "All of them in bf16, FP8 (blocks, channels or whole tensors) and 4-bit integers (GPTQ, AWQ, "
    "pack-quantized); --quantization makes FP8 or 4 bits of any at load."
)


class Row(NamedTuple):
    """One model_type in words."""

    model_type: str
    models: str
    attention: str
    experts: str


HEADER = Row("model_type", "models", "attention", "experts")


def rows() -> list[Row]:
    """One a type, by name."""
    return [
        Row(name, entry.models, _attention(name), _experts(entry))
        for name, entry in sorted(MODEL_TYPES.items())
    ]


def text_table(lines: list[Row]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def markdown_table(lines: list[Row]) -> str:
    """The same for a document; the first line is the header."""
    cells = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join((cells[0], "|" + "---|" * len(lines[0]), *cells[1:]))


def _attention(model_type: str) -> str:
    """With the numbers that absent keys have, but for heads of a usual width."""
    entry = MODEL_TYPES[model_type]
    raw: dict[str, Any] = {"model_type": model_type, "head_dim": 128}
    if entry.text_types:
        raw[str(entry.text_key)] = {"model_type": entry.text_types[-1]}
    config = ModelConfig.from_hf(raw)
    specs = config.cached
    words = _words(specs[0], has_windows=any(spec.window for spec in specs))
    return words if len(specs) == config.num_layers else f"{words}; gated delta layers"


def _words(spec: CachedAttention, *, has_windows: bool) -> str:
    if isinstance(spec, MlaSpec):
        return "latents (MLA)"
    partial = spec.rope is not None and spec.rope.dim < spec.head_dim
    parts = (
        "grouped-query",
        _NORMS[spec.qk_norm],
        "biases" if spec.qkv_bias else "",
        "windows" if has_windows else "",
        "part of a head turned" if partial else "",
        "pairs turned" if spec.rope is not None and spec.rope.interleaved else "",
    )
    return ", ".join(part for part in parts if part)


def _experts(entry: ModelType) -> str:
    if entry.moe is None:
        return "none"
    moe = entry.moe
    shared = moe.shared_size is not None or moe.num_shared is not None
    words = _ROUTERS[resolve_router(entry.defaults)] + (", bias" if moe.correction_bias else "")
    if not shared:
        return words
    return f"{words}; shared ones{', gated' if moe.shared_gated else ''}"
