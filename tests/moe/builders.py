"""Made-up sparse layers: weights by checkpoint name, filled layers, and their oracle."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from moe.base.checkpoint_slice import CheckpointSlice
from moe.base.context import KernelContext
from moe.base.parallel import ParallelConfig, resolve_parallel
from moe.base.tiles import TileTable
from moe.base.workspace import Workspace
from moe.config import MoEConfig
from moe.groups import ExpertGroups
from moe.layer import SparseMoeBlock
from moe.reference import reference_experts, reference_mlp
from moe.router import TopKRouter

Weights = dict[str, torch.Tensor]


def interpreted(dtype: torch.dtype = torch.float32) -> KernelContext:
    """Kernels on a CPU, their tiles guessed."""
    name = str(dtype).removeprefix("torch.")
    book = TileTable(dtype=name, item_size=dtype.itemsize, shared_bytes=100_000)
    return KernelContext(workspace=Workspace("cpu"), tiles=book, pdl=False, num_cores=2)


def make_weights(config: MoEConfig, seed: int = 0) -> Weights:
    """Hub names under an empty prefix, fp32, of a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    hidden, width = config.hidden_size, config.intermediate_size
    shapes = {"gate.weight": (config.num_experts, hidden)}
    mlps = {f"experts.{expert}": width for expert in range(config.num_experts)}
    if config.shared_expert_size:
        name = "shared_expert" if config.shared_expert_gated else "shared_experts"
        mlps[name] = config.shared_expert_size
    for name, inner in mlps.items():
        shapes[f"{name}.gate_proj.weight"] = shapes[f"{name}.up_proj.weight"] = (inner, hidden)
        shapes[f"{name}.down_proj.weight"] = (hidden, inner)
    if config.shared_expert_gated:
        shapes["shared_expert_gate.weight"] = (1, hidden)
    weights = {
        name: torch.randn(shape, generator=generator) * shape[1] ** -0.5
        for name, shape in shapes.items()
    }
    if config.has_correction_bias:
        weights["gate.e_score_correction_bias"] = torch.randn(
            config.num_experts, generator=generator
        )
    return weights


def pack(weights: Weights, config: MoEConfig) -> Weights:
    """The same experts under transformers 5's packed names."""
    packed = {name: value for name, value in weights.items() if not name.startswith("experts.")}
    gate, up, down = stacked(weights, config)
    return packed | {"experts.gate_up_proj": torch.cat((gate, up), 1), "experts.down_proj": down}


def stacked(weights: Weights, config: MoEConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """gate [E,I,H], up [E,I,H], down [E,H,I]."""
    gate, up, down = (
        torch.stack([weights[f"experts.{e}.{name}_proj.weight"] for e in range(config.num_experts)])
        for name in ("gate", "up", "down")
    )
    return gate, up, down


def fill(slices: Iterable[CheckpointSlice], weights: Weights) -> set[str]:
    """Copies what the slices ask for, and returns the names they mention."""
    named = set()
    for piece in slices:
        named.add(piece.name)
        assert tuple(weights[piece.name].shape) == piece.shape, piece.name
        if piece.index is not None and piece.target is not None:
            piece.target.copy_(weights[piece.name][piece.index])
    return named


def make_layer(
    config: MoEConfig,
    weights: Weights,
    *,
    parallel: ParallelConfig | None = None,
    groups: ExpertGroups | None = None,
    runner: str = "fused",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> SparseMoeBlock:
    """A layer on one rank, its weights read through its own checkpoint slices."""
    single = resolve_parallel(tp=1, dp=1, ep=None, backend="auto", has_experts=True)
    layer = SparseMoeBlock(
        config, parallel or single, groups or ExpertGroups(), runner, dtype=dtype, device=device
    )
    assert fill(layer.checkpoint_slices(""), weights) == set(weights)
    return layer


def oracle(config: MoEConfig, weights: Weights, hidden_TH: torch.Tensor) -> torch.Tensor:
    """fp64 [T,H]: the whole layer, routed by `TopKRouter`, computed by moe.reference."""
    router = TopKRouter(config, dtype=torch.float32, device="cpu")
    gate = {k.removeprefix("gate."): v for k, v in weights.items() if k.startswith("gate.")}
    router.load_state_dict(gate)
    topk = router(hidden_TH)
    out_TH = reference_experts(hidden_TH, topk.weights, topk.ids, *stacked(weights, config))
    if config.shared_expert_size:
        name = "shared_expert" if config.shared_expert_gated else "shared_experts"
        mlp = [weights[f"{name}.{which}_proj.weight"] for which in ("gate", "up", "down")]
        for token, hidden_H in enumerate(hidden_TH):
            shared_H = reference_mlp(hidden_H, *mlp)
            if config.shared_expert_gated:
                shared_H *= torch.sigmoid(weights["shared_expert_gate.weight"] @ hidden_H).double()
            out_TH[token] += shared_H
    return out_TH
