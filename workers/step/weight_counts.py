"""How many weights a rank's matrices have, how many of them are 8-bit floats, and their bytes.

Owns the shapes of a rank's matrices. Imports no torch. Knows nothing of devices or steps. Matrices
that `ModelConfig` does not tell of are not counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from moe.base.fp8_format import Fp8Format
from moe.base.parallel import ParallelConfig
from moe.names import Mlp
from workers.attention.projection import Projection, hidden_side
from workers.config_json.decoder_names import MLP_MODULES
from workers.config_json.model_config import ModelConfig
from workers.config_json.quantized_modules import Quantization


class _Matrix(NamedTuple):
    """One matrix of a rank; one that is never quantized has no name, and one that is always fp32
    says so."""

    module: str
    rows: float
    columns: float
    is_fp32: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class WeightCount:
    """Parameters, those of them that have 8 bits, and the bytes of all, scales included."""

    parameters: int
    fp8: int
    num_bytes: int


def dense_weights(config: ModelConfig, parallel: ParallelConfig, value_bytes: int) -> WeightCount:
    """What every token passes, without the head: sliced over tp, but for KV heads fewer than ranks,
    routers, gates, and shared experts of a backend that shares tokens out."""
    return _count(_dense_matrices(config, parallel), config.quantization, value_bytes)


def last_weights(config: ModelConfig, parallel: ParallelConfig, value_bytes: int) -> WeightCount:
    """Of `dense_weights` what stands behind the last layer's attention: an output projection and
    an MLP, or what a mixture has beside its experts."""
    last, hidden = config.num_layers - 1, hidden_side(config.hidden_size)
    found = config.attention[last].projections(config.hidden_size)
    outputs = [each for each in found if each.outputs == hidden]
    behind = [
        *_projected(config, parallel, last, outputs),
        *_beside_experts(config, parallel, last),
    ]
    return _count(behind, config.quantization, value_bytes)


def expert_weights(config: ModelConfig, num_slices: int, value_bytes: int) -> WeightCount:
    """One expert, or one of ``num_slices`` of it: the mean over the layers that have any."""
    layers = [layer for layer, is_moe in enumerate(config.moe_layers) if is_moe]
    if config.moe is None or not layers:
        return WeightCount(0, 0, 0)
    width, hidden = config.moe.intermediate_size / num_slices, config.hidden_size
    modules = config.moe.names.expert_modules(0)
    mlps = [_mlp(config.names.layer_mlp(layer), modules, width, hidden) for layer in layers]
    total = _count((each for mlp in mlps for each in mlp), config.quantization, value_bytes)
    return WeightCount(
        parameters=round(total.parameters / len(layers)),
        fp8=round(total.fp8 / len(layers)),
        num_bytes=round(total.num_bytes / len(layers)),
    )


def _dense_matrices(config: ModelConfig, parallel: ParallelConfig) -> Iterator[_Matrix]:
    for layer in range(config.num_layers):
        projections = config.attention[layer].projections(config.hidden_size)
        yield from _projected(config, parallel, layer, projections)
        yield from _beside_experts(config, parallel, layer)


def _projected(
    config: ModelConfig, parallel: ParallelConfig, layer: int, projections: Iterable[Projection]
) -> Iterator[_Matrix]:
    """Of a layer's attention."""
    prefix, tp = config.attention_prefix(layer), parallel.tp
    for module, outputs, inputs in projections:
        yield _Matrix(f"{prefix}{module}", outputs.share(tp), inputs.share(tp))


def _beside_experts(config: ModelConfig, parallel: ParallelConfig, layer: int) -> Iterator[_Matrix]:
    """A dense MLP, or what a mixture has that every token passes."""
    tp, moe, hidden = parallel.tp, config.moe, config.hidden_size
    prefix = config.names.layer_mlp(layer)
    if moe is None or not config.moe_layers[layer]:
        yield from _mlp(prefix, MLP_MODULES, config.intermediate_size / tp, hidden)
        return
    yield _Matrix("", moe.num_experts, hidden, is_fp32=moe.fp32_gate)
    if moe.shared_expert_gated:
        yield _Matrix("", 1, hidden)
    if moe.shared_expert_size:
        shared = moe.shared_expert_size / (tp if parallel.tokens_replicated else 1)
        yield from _mlp(prefix, moe.shared_modules, shared, hidden)


def _mlp(prefix: str, modules: Mlp, width: float, hidden: int) -> list[_Matrix]:
    gate, up, down = modules
    return [
        _Matrix(f"{prefix}{gate}", width, hidden),
        _Matrix(f"{prefix}{up}", width, hidden),
        _Matrix(f"{prefix}{down}", hidden, width),
    ]


def _count(
    matrices: Iterable[_Matrix], quantization: Quantization | None, value_bytes: int
) -> WeightCount:
    parameters = fp8 = num_bytes = 0.0
    for module, rows, columns, is_fp32 in matrices:
        size = rows * columns
        parameters += size
        if quantization is None or not module or module in quantization.skipped:
            num_bytes += (4 if is_fp32 else value_bytes) * size
            continue
        if isinstance(quantization.weight_format, Fp8Format):
            fp8 += size
        num_bytes += quantization.weight_format.num_bytes(rows, columns)
    return WeightCount(round(parameters), round(fp8), round(num_bytes))
