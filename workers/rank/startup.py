"""From flags to a rank that is ready to run steps.

Owns the order: group → model → weights → KV cache → graphs. Knows nothing of gRPC.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from typing import NamedTuple

import torch
from torch import nn

from moe.base.context import KernelContext, make_context
from moe.base.parallel import ParallelConfig
from moe.config import resolve_runner
from moe.placement import ExpertPlacement
from workers.attention.plan import MAX_GROUP, MAX_HEAD_DIM
from workers.config import WorkerConfig
from workers.distributed import Groups, expert_groups, join, ranks_here
from workers.model_config import ModelConfig
from workers.models import MODELS
from workers.models.base import Placement
from workers.rank import kv_sizing
from workers.sampling.triton_sampler import TritonSampler
from workers.step.batch import AttentionShape, BatchBuilder
from workers.step.roofline import Roofline, device_ceilings
from workers.step.runner import Measure, Runner
from workers.weights import Checkpoint, Loaded, load_weights, make_up_weights

log = logging.getLogger(__name__)

_CUDA_STEP_TOKENS = 8192  # prefills below 2k tokens waste reads of expert weights
_CPU_STEP_TOKENS = 1024
_CPU_WARM_UP_TOKENS = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRank:
    """A rank that is ready, and what it can hold."""

    runner: Runner
    groups: Groups
    model_config: ModelConfig
    loaded: Loaded
    max_model_len: int
    max_num_batched_tokens: int
    num_blocks: int
    timed_tokens: int
    timed_seconds: float
    device_name: str
    dtype: torch.dtype
    context: KernelContext | None


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one; the rank's own card by LOCAL_RANK.

    Raises:
        ValueError: CUDA was asked for and is not there, or has fewer cards than ranks.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    local_rank, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= cards:
        raise ValueError(
            f"rank {local_rank} of this machine needs a CUDA device of its own, {cards} found; "
            "lower --tp and --dp or use --device cpu"
        )
    return torch.device("cuda", local_rank)


def start(
    config: WorkerConfig, parallel: ParallelConfig, context: KernelContext | None = None
) -> LoadedRank:
    """Build everything on this rank.

    Args:
        context: for kernels; a CUDA device has its own by default, a CPU none.

    Raises:
        ValueError: flags, model folder or memory do not fit; one line saying why.
    """
    device = choose_device(config.device)
    _set_up(device)
    model_config = ModelConfig.from_folder(config.model)
    model_config.check_tensor_parallel(parallel.tp)
    limits = _limits(config, model_config, device)
    checkpoint = None if config.load_format == "dummy" else Checkpoint(config.model)
    if context is None and device.type == "cuda":
        context = make_context(device, limits.dtype)
    groups = join(parallel, device)
    place = Placement(
        groups=groups,
        expert_groups=expert_groups(groups, parallel),
        parallel=parallel,
        moe_runner=resolve_runner(config.moe_runner),
        max_positions=limits.max_model_len,
        max_tokens=limits.step_tokens,
        context=context,
        dtype=limits.dtype,
        device=device,
    )
    model = MODELS[model_config.architecture](model_config, place).eval()
    loaded = _load(model, checkpoint, config)
    log.info("rank %d read %d bytes of weights", groups.rank, loaded.bytes_read)
    runner = Runner(
        model,
        None,
        _builder(config, model_config, model, place),
        _measure(model_config, place),
        reports=groups.tp_rank == 0,
        sampler=_sampler(config, model_config, place),
    )
    num_blocks = kv_sizing.give_cache(runner, config, model_config, place)
    if kv_sizing.capturable(config, place):
        kv_sizing.capture_graphs(runner, config, place)
    timed_tokens, timed_seconds = kv_sizing.time_prefill(runner, config, place)
    if model.expert_load is not None:
        model.expert_load.load_LE.zero_()  # of made-up steps
    return LoadedRank(
        runner=runner,
        groups=groups,
        model_config=model_config,
        loaded=loaded,
        max_model_len=limits.max_model_len,
        max_num_batched_tokens=limits.step_tokens,
        num_blocks=num_blocks,
        timed_tokens=timed_tokens,
        timed_seconds=timed_seconds,
        device_name=device_name(device),
        dtype=limits.dtype,
        context=place.context,
    )


def device_name(device: torch.device) -> str:
    """The name of a card as its driver says it, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _set_up(device: torch.device) -> None:
    """Take the card, or this rank's share of the machine's cores."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # The default stream cannot be captured.
        torch.cuda.set_stream(torch.cuda.Stream(device))
    elif "OMP_NUM_THREADS" not in os.environ:
        # One core is left to the frontend.
        torch.set_num_threads(max(1, (len(os.sched_getaffinity(0)) - 1) // ranks_here()))


class _Limits(NamedTuple):
    """What flags and model settle before anything is built."""

    dtype: torch.dtype
    max_model_len: int
    step_tokens: int


def _limits(config: WorkerConfig, model: ModelConfig, device: torch.device) -> _Limits:
    step_tokens = config.max_num_batched_tokens or (
        _CUDA_STEP_TOKENS if device.type == "cuda" else _CPU_STEP_TOKENS
    )
    if step_tokens < config.max_batch_size:
        raise ValueError(
            f"--max-num-batched-tokens {step_tokens} is below --max-batch-size "
            f"{config.max_batch_size}; each running sequence needs a token a step"
        )
    return _Limits(
        _dtype(config.dtype, model.dtype, device),
        _max_model_len(config.max_model_len, model.max_position_embeddings),
        step_tokens,
    )


def _dtype(asked: str, checkpoint: str, device: torch.device) -> torch.dtype:
    """``auto``: bfloat16 on CUDA, float32 on CPU, where it is faster and exact."""
    if asked == "auto":
        asked = "bfloat16" if device.type == "cuda" and checkpoint != "float32" else "float32"
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[asked]


def _max_model_len(asked: int | None, limit: int) -> int:
    if asked is not None and asked > limit:
        raise ValueError(
            f"--max-model-len {asked} is above the model's max_position_embeddings {limit}"
        )
    return asked or limit


def _load(model: nn.Module, checkpoint: Checkpoint | None, config: WorkerConfig) -> Loaded:
    if checkpoint is None:
        with torch.inference_mode():
            make_up_weights(model.checkpoint_slices(), config.seed)
        digest = hashlib.sha256((config.model / "config.json").read_bytes()).hexdigest()
        return Loaded(bytes_read=0, sha256=digest)
    # A tied head is sometimes saved all the same.
    tied = frozenset({"lm_head.weight"})
    with torch.inference_mode():
        slices = model.checkpoint_slices(checkpoint.packed_experts)
        return load_weights(slices, checkpoint, ignore=tied)


def _builder(
    config: WorkerConfig, model_config: ModelConfig, model: nn.Module, place: Placement
) -> BatchBuilder:
    return BatchBuilder(
        num_slots=config.max_batch_size,
        max_blocks=-(-place.max_positions // config.block_size),
        block_size=config.block_size,
        max_tokens=place.max_tokens,
        device=place.device,
        attention=_attention_shape(model_config, model.num_kv_heads, place),
    )


def _measure(config: ModelConfig, place: Placement) -> Measure:
    dtype = str(place.dtype).removeprefix("torch.")
    roofline = Roofline.of_rank(
        config, place.parallel, num_local_experts=_num_local(config, place), dtype=dtype
    )
    return Measure(roofline, device_ceilings(device_name(place.device), dtype))


def _attention_shape(config: ModelConfig, kv_heads: int, place: Placement) -> AttentionShape | None:
    if place.context is None:
        return None
    group = config.num_heads // config.num_kv_heads
    if config.head_dim > MAX_HEAD_DIM or group > MAX_GROUP:
        raise ValueError(
            f"head_dim {config.head_dim} with {group} query heads a KV head: attention kernels "
            f"take at most {MAX_HEAD_DIM} and {MAX_GROUP}; use --device cpu"
        )
    return AttentionShape(
        num_heads=config.num_heads // place.parallel.tp,
        kv_heads=kv_heads,
        num_cores=place.context.num_cores,
    )


def _num_local(config: ModelConfig, place: Placement) -> int:
    """Experts of this rank in each sparse layer."""
    if config.moe is None:
        return 0
    groups = place.expert_groups
    return ExpertPlacement(
        num_experts=config.moe.num_experts, num_ranks=groups.ep_size, rank=groups.ep_rank
    ).num_local


def _sampler(
    config: WorkerConfig, model_config: ModelConfig, place: Placement
) -> TritonSampler | None:
    if place.context is None:
        return None
    return TritonSampler(
        max_rows=config.max_batch_size,
        vocab_size=model_config.vocab_size,
        device=place.device,
        pdl=place.context.pdl,
    )
