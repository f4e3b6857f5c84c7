"""The self-check of a start: what a rank will run, once, against plain torch.

Owns the table of checks, which of them a rank runs, and the line of one that fails. Nothing stays
allocated, and kernels are those that the warm-up compiles. See finding.py for what is right.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import nn
from triton.errors import TritonError

from moe.layer import SparseMoeBlock
from workers.attention.kv_cache import CacheSizes
from workers.layers.embedding import Embedding, LMHead
from workers.layers.norm import LayerNorm, Norm, RMSNorm, RMSNormOfOne
from workers.models.attention import Attention
from workers.models.base import BuildContext, Model
from workers.models.delta_net import DeltaNet
from workers.models.dense_mlp import DenseMLP
from workers.models.end_norms import EndNormLayer
from workers.models.mla import LatentAttention
from workers.sampling.triton_sampler import TritonSampler
from workers.self_check.attention import check_attention
from workers.self_check.collectives import check_collectives
from workers.self_check.dense import (
    check_embedding,
    check_end_norms,
    check_head,
    check_mlp,
    check_norm,
)
from workers.self_check.experts import check_sparse
from workers.self_check.finding import Finding
from workers.self_check.latents import check_latents
from workers.self_check.sampling import check_sampler
from workers.self_check.setting import Setting
from workers.self_check.states import check_delta
from workers.step.batch import BatchBuilder

log = logging.getLogger(__name__)

_ALIGNED = 16  # bytes
_MLPS = (SparseMoeBlock, DenseMLP)

# By the modules that run the kernels; one of each kind and shape is checked.
CHECKS: dict[type[nn.Module], Callable[[Any, Setting], Iterator[Finding]]] = {
    Embedding: check_embedding,
    Attention: check_attention,
    LatentAttention: check_latents,
    DeltaNet: check_delta,
    DenseMLP: check_mlp,
    EndNormLayer: check_end_norms,
    SparseMoeBlock: check_sparse,
    RMSNorm: check_norm,
    RMSNormOfOne: check_norm,
    LayerNorm: check_norm,
    LMHead: check_head,
}


@torch.inference_mode()
def check_rank(
    model: Model,
    builder: BatchBuilder,
    sampler: TritonSampler | None,
    sizes: CacheSizes,
    build: BuildContext,
    *,
    vocab_size: int,
) -> None:
    """Run what of the table the model has, the draw, and the exchanges of the layout; without
    kernels, the exchanges alone. All ranks must call it at the same time.

    Args:
        builder: its slots are free.
        sizes: of the cache that serves.

    Raises:
        ValueError: something computes what is wrong, or does not run; one line says what.
    """
    began = time.perf_counter()
    assert isinstance(model, nn.Module)
    checks = [("exchanges of ranks", _exchanges(model, build))]
    if build.context is not None and sampler is not None:
        setting = make_setting(model, builder, sizes, build)
        checks += kernel_checks(model, setting)
        checks.append(("the draw", check_sampler(sampler, vocab_size, setting)))
    num_right = sum(_num_right(*check, build.device) for check in checks)
    if build.context is not None:
        build.context.workspace.release()
    seconds = time.perf_counter() - began
    if num_right:
        log.info("self-check: %d comparisons with plain torch in %.2f s", num_right, seconds)


def make_setting(
    model: nn.Module, builder: BatchBuilder, sizes: CacheSizes, build: BuildContext
) -> Setting:
    """What the checks of a rank's kernels share."""
    assert build.context is not None
    modules = list(model.modules())
    mlp = next(each for kind in _MLPS for each in modules if isinstance(each, kind))
    end_layers = [each for each in modules if isinstance(each, EndNormLayer)]
    has_norm = all(each.mlp_norm is not None for each in end_layers)
    return Setting(
        context=build.context,
        parallel=build.parallel,
        max_tokens=build.max_tokens,
        max_positions=build.max_positions,
        norm=next(each for each in modules if isinstance(each, Norm) and each.context),
        attention=next(each for each in modules if isinstance(each, Attention | LatentAttention)),
        mlp=mlp,
        router_EH=mlp.router_weight if has_norm else None,
        builder=builder,
        sizes=sizes,
    )


def kernel_checks(model: nn.Module, setting: Setting) -> Iterator[tuple[str, Iterator[Finding]]]:
    """Those of the model's modules, in its order, each with what it is of."""
    seen = set()
    for module in model.modules():
        check = CHECKS.get(type(module))
        if check is None or not _has_kernels(module):
            continue
        shape = _shape(module)
        if shape not in seen:
            seen.add(shape)
            yield type(module).__name__, check(module, setting)


def _exchanges(model: nn.Module, build: BuildContext) -> Iterator[Finding]:
    head = next(each for each in model.modules() if isinstance(each, LMHead))
    return check_collectives(
        build.groups,
        build.expert_groups,
        build.parallel,
        width=head.hidden_size,
        dtype=build.dtype,
        device=build.device,
    )


def _has_kernels(module: nn.Module) -> bool:
    """The norms of single heads have none: their kernel is attention's."""
    return not isinstance(module, Norm) or module.context is not None


def _shape(module: nn.Module) -> tuple[object, ...]:
    """What kernels are chosen by: types and shapes of all weights, and how they are aligned; of
    attention also its numbers."""
    weights = module.named_parameters()
    facts = ((name, each.shape, each.dtype, each.data_ptr() % _ALIGNED) for name, each in weights)
    return (type(module), getattr(module, "spec", None), *facts)


def _num_right(name: str, findings: Iterator[Finding], device: torch.device) -> int:
    """How many there are; raises ValueError for the first that is wrong."""
    number = 0
    try:
        for finding in findings:
            if not finding.is_right:
                raise ValueError(_line(f"{finding}, so answers would be wrong", device))
            number += 1
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TritonError) as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise ValueError(_line(f"{name}: does not run: {reason}", device)) from error
    return number


def _line(what: str, device: torch.device) -> str:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    versions = f"Triton {triton.__version__} and torch {torch.__version__}"
    return (
        f"self-check: {what}; on {card} with {versions}: report this line; with "
        "--self-check off it serves all the same"
    )
