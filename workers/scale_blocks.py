"""Whether each rank's share of every matrix of fewer bits is whole blocks of its scales, and whole
words of what a checkpoint packs.

Owns that check, and the size of blocks that are made at load. Torch-free, so that a launcher can
refuse a layout before anything heavy starts. Knows nothing of tensors.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from moe.base.fp8_format import Fp8Format
from moe.base.int4_format import Int4Format
from moe.base.parallel import ParallelConfig
from moe.base.weight_format import WeightFormat
from workers.attention.projection import Side
from workers.config_json.decoder_names import MLP_MODULES, DecoderNames
from workers.config_json.model_config import ModelConfig
from workers.config_json.quantization import MADE
from workers.config_json.quantized_modules import ModuleNames, Quantization

_MADE_SIZES = (128, 64, 32)  # of blocks and groups: the first that all shares are multiples of
_MADE: dict[str, Callable[[int], WeightFormat]] = {
    "fp8": lambda size: dataclasses.replace(MADE, block=(size, size)),
    "int4": lambda size: Int4Format(group=size),
}
# A row for each head: too few for blocks.
_HEAD_GATES = frozenset({"self_attn.g_proj"})
# Dense MLPs of at most this share of a mixture's layers do not make everyone's blocks small.
_FEW = 1 / 8
_MOST_TP = 64  # of those that are looked at for a remedy


class _Layout(NamedTuple):
    """Ranks that attention and dense MLPs, routed experts, and shared ones are sliced over."""

    tp: int
    experts: int
    shared: int


class _Side(NamedTuple):
    """One side of a matrix, cut in equal shares, as `workers.attention.projection.Side` is."""

    name: str
    total: int
    shares: int
    may_cut: bool = False
    pieces: tuple[int, ...] = ()


class _Matrix(NamedTuple):
    """One of each layer of its kind: all, dense or sparse ones."""

    layers: list[bool]
    module: str
    rows: _Side
    columns: _Side


def with_quantization(
    config: ModelConfig, flag: str, parallel: ParallelConfig, *, made_up: bool
) -> ModelConfig:
    """The model as it is served: as its folder or ``flag`` says, in whole blocks.

    Args:
        flag: --quantization.
        made_up: there is no checkpoint: what would be read with its scales is quantized at load.

    Raises:
        ValueError: one line with the numbers of a share that cuts a block, and what to do.
    """
    said = config.quantization
    if said is None:
        return config if flag == "auto" else _with_made(config, flag, parallel)
    if problem := _problem(config, said, _layout(parallel)):
        raise ValueError(f"{problem}; {_remedy(config, said, parallel)}")
    if made_up:
        plain = dataclasses.replace(said.weight_format, stored="plain")
        said = dataclasses.replace(said, weight_format=plain)
    return dataclasses.replace(config, quantization=said)


def _with_made(config: ModelConfig, flag: str, parallel: ParallelConfig) -> ModelConfig:
    """In the largest blocks that do for all matrices, or for all but a mixture's few dense MLPs,
    which then keep the model's dtype."""
    for size, skipped in itertools.product(_MADE_SIZES, _left_as_they_are(config)):
        names = ModuleNames(names=skipped)
        made = Quantization(weight_format=_MADE[flag](size), skipped=names)
        problem = _problem(config, made, _layout(parallel))
        if problem is None:
            return dataclasses.replace(config, quantization=made)
    raise ValueError(f"--quantization {flag}: {problem}; {_remedy(config, made, parallel)}")


def _left_as_they_are(config: ModelConfig) -> Iterator[frozenset[str]]:
    """Modules that keep their dtype: those that must, then those that may."""
    gated = any(getattr(spec, "gate", "none") == "head" for spec in config.attention)
    skipped = _HEAD_GATES if gated else frozenset()
    yield skipped
    dense = [layer for layer, is_sparse in enumerate(config.moe_layers) if not is_sparse]
    if 0 < len(dense) <= _FEW * len(config.moe_layers):
        mlps = itertools.product(map(config.names.layer_mlp, dense), MLP_MODULES)
        yield skipped | {f"{mlp}{module}" for mlp, module in mlps}


def _layout(parallel: ParallelConfig) -> _Layout:
    tp = parallel.tp
    return _Layout(
        tp=tp,
        experts=tp if parallel.ep == 1 else 1,
        shared=tp if parallel.tokens_replicated else 1,
    )


def _problem(config: ModelConfig, quantization: Quantization, layout: _Layout) -> str | None:
    """The numbers of a share that is not whole blocks; None where there is none."""
    multiples = quantization.weight_format.multiples
    for matrix in _matrices(config, layout):
        if not _has_scales(matrix, config.names, quantization):
            continue
        for side, size in zip(matrix[2:], multiples, strict=True):
            share = side.total // side.shares
            if share % size and not side.may_cut:
                shares = f" over {side.shares} ranks, {share} each," if side.shares > 1 else ""
                return (
                    f"{side.name} {side.total}{shares} is no multiple of {size}, and "
                    f"{_why(quantization.weight_format, size)}"
                )
            for piece in side.pieces:
                if piece % size:
                    return (
                        f"{side.name}: {piece} rows of one head are no multiple of {size}, and "
                        f"{_why(quantization.weight_format, size)}"
                    )
    return None


def _why(weight_format: WeightFormat, size: int) -> str:
    if isinstance(weight_format, Fp8Format):
        rows, columns = weight_format.multiples
        return f"scales belong to whole blocks of {rows} × {columns} weights"
    if size == weight_format.group:
        return f"scales belong to groups of {size} inputs"
    return f"{size} numbers of four bits are packed together"


def _remedy(config: ModelConfig, quantization: Quantization, parallel: ParallelConfig) -> str:
    """Layouts that have whole blocks."""
    layout = _layout(parallel)
    if layout.experts > 1 and not _problem(config, quantization, layout._replace(experts=1)):
        return f"pass --ep {parallel.world_size}, which leaves experts whole"
    good = []
    for tp in range(1, _MOST_TP + 1):
        other = _Layout(tp, *(tp if sliced > 1 else 1 for sliced in layout[1:]))
        if _divides(config, other) and not _problem(config, quantization, other):
            good.append(str(tp))
    if good:
        return f"choose --tp {' or '.join(good)}, and --dp for more ranks"
    return "serve the model's checkpoint in bfloat16"


def _divides(config: ModelConfig, layout: _Layout) -> bool:
    try:
        config.check_tensor_parallel(layout.tp)
    except ValueError:
        return False
    return all(
        side.total % side.shares == 0 for each in _matrices(config, layout) for side in each[2:]
    )


def _has_scales(matrix: _Matrix, names: DecoderNames, quantization: Quantization) -> bool:
    return any(
        f"{names.layer(layer)}{matrix.module}" not in quantization.skipped
        for layer, is_there in enumerate(matrix.layers)
        if is_there
    )


def _matrices(config: ModelConfig, layout: _Layout) -> Iterator[_Matrix]:
    """All that may have scales, those of one shape once."""
    hidden = _Side("hidden_size", config.hidden_size, 1)
    for spec in dict.fromkeys(config.attention):
        layers = [each == spec for each in config.attention]
        layer = layers.index(True)
        prefix = config.attention_prefix(layer).removeprefix(config.names.layer(layer))
        for module, *sides in spec.projections(config.hidden_size):
            outputs, inputs = (_side(each, layout.tp) for each in sides)
            yield _Matrix(layers, f"{prefix}{module}", outputs, inputs)
    sparse, moe = list(config.moe_layers), config.moe
    dense = [not is_sparse for is_sparse in sparse]
    mlp = config.names.mlp_prefix
    mlps = [(dense, MLP_MODULES, _Side("intermediate_size", config.intermediate_size, layout.tp))]
    if moe is not None:
        width = _Side("moe_intermediate_size", moe.intermediate_size, layout.experts)
        mlps.append((sparse, moe.names.expert_modules(0), width))
    if moe is not None and moe.shared_expert_size:
        width = _Side("the shared experts' width", moe.shared_expert_size, layout.shared)
        mlps.append((sparse, moe.shared_modules, width))
    for layers, (gate, _, down), width in mlps:
        yield _Matrix(layers, f"{mlp}{gate}", width, hidden)
        yield _Matrix(layers, f"{mlp}{down}", hidden, width)


def _side(side: Side, tp: int) -> _Side:
    return _Side(side.name, side.size, side.ranks(tp), side.may_cut, side.pieces)
