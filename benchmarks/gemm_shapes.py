"""The GEMMs of a rank: which matrices a model and a layout give it.

Owns their sizes and names. Imports no torch; knows nothing of kernels or tiles. Where ranks differ
it is the largest share.
"""

from __future__ import annotations

import dataclasses

from moe.base.parallel import ParallelConfig
from moe.base.tiles import experts_key, linear_key
from workers.attention.any import AnyAttention
from workers.config_json.model_config import ModelConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """A rank's share of a sparse layer: `num_local` of the experts, `width` wide."""

    num_experts: int
    num_local: int
    top_k: int
    width: int
    hidden: int

    def key(self, dtype: str) -> str:
        """Its name in a file of tiles."""
        return experts_key(self.num_local, self.width, self.hidden, dtype)

    def extent(self, op: str) -> tuple[int, int]:
        """Columns and depth of one matrix."""
        return (self.width, self.hidden) if op == "gate_up" else (self.hidden, self.width)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LinearShape:
    """A rank's share of a dense layer."""

    name: str
    outputs: int
    inputs: int

    def key(self, dtype: str) -> str:
        """Its name in a file of tiles."""
        return linear_key(self.outputs, self.inputs, dtype)

    def extent(self, op: str) -> tuple[int, int]:
        """Columns and depth."""
        assert op == "linear"
        return self.outputs, self.inputs


def expert_shape(config: ModelConfig, parallel: ParallelConfig) -> ExpertShape | None:
    """The largest share of any rank; None for a model without experts."""
    moe = config.moe
    if moe is None or not any(config.moe_layers):
        return None
    return ExpertShape(
        num_experts=moe.num_experts,
        num_local=-(-moe.num_experts // parallel.ep),
        top_k=moe.num_experts_per_tok,
        width=moe.intermediate_size // (parallel.tp if parallel.ep == 1 else 1),
        hidden=config.hidden_size,
    )


def linear_shapes(config: ModelConfig, parallel: ParallelConfig) -> list[LinearShape]:
    """Of attention, router, dense MLP and head; one of each size. Routers of fp32 are not tuned."""
    tp, hidden = parallel.tp, config.hidden_size
    sizes = [
        each for spec in dict.fromkeys(config.attention) for each in _projections(spec, tp, hidden)
    ]
    if config.moe is not None and any(config.moe_layers) and not config.moe.fp32_gate:
        sizes.append(("router", config.moe.num_experts, hidden))
    if not all(config.moe_layers):
        width = config.intermediate_size // tp
        sizes += [("dense gate·up", 2 * width, hidden), ("dense down", hidden, width)]
    sizes.append(("head", -(-config.vocab_size // tp), hidden))
    shapes = {(N, K): LinearShape(name=name, outputs=N, inputs=K) for name, N, K in sizes}
    return list(shapes.values())


def _projections(spec: AnyAttention, tp: int, hidden: int) -> list[tuple[str, int, int]]:
    """Those of one layer as they are computed, of one input together: name, outputs, inputs."""
    joined: dict[str, tuple[str, int, int]] = {}
    for module, outputs, inputs in spec.projections(hidden):
        name = "qkv" if inputs.name == "hidden_size" else module
        _, before, _ = joined.get(name, ("", 0, 0))
        joined[name] = name, before + outputs.share(tp), inputs.share(tp)
    return list(joined.values())
