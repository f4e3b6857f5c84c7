"""From flags to a rank that is ready to run steps.

Owns the order: group → model → weights → warm-up → KV cache → graphs. Knows nothing of gRPC.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os

import torch
from torch import nn

from moe.config import ParallelConfig, resolve_runner
from moe.kernels.context import KernelContext, make_context
from moe.placement import ExpertPlacement
from workers.attention_plan import MAX_GROUP, MAX_HEAD_DIM
from workers.batch import AttentionShape, BatchBuilder
from workers.config import ModelConfig, WorkerConfig
from workers.distributed import Groups, expert_groups, join
from workers.graphs import StepGraphs, batch_sizes, mixed_sizes
from workers.kernel_sampler import KernelSampler
from workers.kv_cache import (
    GRAPH_RESERVE_BYTES,
    KVCache,
    blocks_that_fit,
    bytes_per_block,
    free_bytes,
)
from workers.models import MODELS
from workers.models.base import Placement
from workers.roofline import Roofline, device_ceilings
from workers.runner import Measure, Runner
from workers.warm_up import warm_up_blocks, warm_up_steps
from workers.weights import Checkpoint, Loaded, load_weights, make_up_weights

log = logging.getLogger(__name__)

_CUDA_STEP_TOKENS = 8192  # prefills below 2k tokens waste reads of expert weights
_CPU_STEP_TOKENS = 1024
_CPU_WARM_UP_TOKENS = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """A rank that is ready, and what it can hold."""

    runner: Runner
    groups: Groups
    model_config: ModelConfig
    loaded: Loaded
    max_model_len: int
    max_num_batched_tokens: int
    num_blocks: int
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
) -> Rank:
    """Build everything on this rank.

    Args:
        context: for kernels; a CUDA device has its own by default, a CPU none.

    Raises:
        ValueError: flags, model folder or memory do not fit; one line saying why.
    """
    device = choose_device(config.device)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # The default stream cannot be captured.
        torch.cuda.set_stream(torch.cuda.Stream(device))
    elif "OMP_NUM_THREADS" not in os.environ:
        # One core is left to the frontend.
        torch.set_num_threads(max(1, (len(os.sched_getaffinity(0)) - 1) // ranks_here))
    model_config = ModelConfig.from_folder(config.model)
    model_config.check_tensor_parallel(parallel.tp)
    dtype = _dtype(config.dtype, model_config.dtype, device)
    max_model_len = _max_model_len(config.max_model_len, model_config.max_position_embeddings)
    step_tokens = config.max_num_batched_tokens or (
        _CUDA_STEP_TOKENS if device.type == "cuda" else _CPU_STEP_TOKENS
    )
    if step_tokens < config.max_batch_size:
        raise ValueError(
            f"--max-num-batched-tokens {step_tokens} is below --max-batch-size "
            f"{config.max_batch_size}; each running sequence needs a token a step"
        )
    checkpoint = None if _is_dummy(config) else Checkpoint(config.model)
    if context is None and device.type == "cuda":
        context = make_context(device, dtype)
    groups = join(parallel, device)
    place = Placement(
        groups=groups,
        expert_groups=expert_groups(groups, parallel),
        parallel=parallel,
        moe_runner=resolve_runner(config.moe_runner),
        max_positions=max_model_len,
        max_tokens=step_tokens,
        context=context,
        dtype=dtype,
        device=device,
    )
    model = MODELS[model_config.architecture](model_config, place).eval()
    loaded = _load(model, checkpoint, config)
    log.info("rank %d read %d bytes of weights", groups.rank, loaded.bytes_read)
    builder = BatchBuilder(
        num_slots=config.max_batch_size,
        max_blocks=-(-max_model_len // config.block_size),
        block_size=config.block_size,
        max_tokens=step_tokens,
        device=device,
        attention=_attention_shape(model_config, model.num_kv_heads, place),
    )
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    measure = Measure(
        Roofline.of_rank(
            model_config,
            parallel,
            num_local_experts=_num_local(model_config, place),
            dtype=str(dtype).removeprefix("torch."),
        ),
        device_ceilings(device_name),
    )
    sizes = {
        "num_layers": model_config.num_layers,
        "block_size": config.block_size,
        "num_kv_heads": model.num_kv_heads,
        "head_dim": model_config.head_dim,
        "dtype": dtype,
    }
    shape = _warm_up_shape(config, max_model_len, step_tokens, device)
    runner = Runner(
        model,
        KVCache(num_blocks=warm_up_blocks(**shape), device=device, **sizes),
        builder,
        measure,
        reports=groups.tp_rank == 0,
        sampler=_sampler(config, model_config, place),
    )
    workspace = _warm_up(runner, shape)
    runner.cache = None  # its memory is part of what may be given away
    if runner.on_cuda:
        torch.cuda.empty_cache()  # in pieces that the cache could not use
    budget = free_bytes(device, config.memory_fraction, workspace, ranks_here)
    num_blocks = groups.minimum(
        blocks_that_fit(config, max_model_len, bytes_per_block(**sizes), budget)
    )
    runner.cache = KVCache(num_blocks=num_blocks, device=device, **sizes)
    if device.type == "cuda" and _capturable(config, parallel):
        mixed = mixed_sizes(step_tokens) if parallel.dp == 1 else []
        _capture(runner, place.context, StepGraphs(batch_sizes(config.max_batch_size), mixed))
    if model.expert_load is not None:
        model.expert_load.load_LE.zero_()  # of made-up steps
    return Rank(
        runner=runner,
        groups=groups,
        model_config=model_config,
        loaded=loaded,
        max_model_len=max_model_len,
        max_num_batched_tokens=step_tokens,
        num_blocks=num_blocks,
        device_name=device_name,
        dtype=dtype,
        context=place.context,
    )


def _is_dummy(config: WorkerConfig) -> bool:
    return config.load_format == "dummy"


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


def _capturable(config: WorkerConfig, parallel: ParallelConfig) -> bool:
    """Neither the exchange nor the runner asks the device for numbers."""
    return (
        config.cuda_graphs == "on"
        and parallel.backend != "all_to_all"
        and resolve_runner(config.moe_runner) != "legacy"
    )


@torch.inference_mode()
def _capture(runner: Runner, context: KernelContext, graphs: StepGraphs) -> None:
    """Capture the steps; raises ValueError where they take more than their reserve."""
    free_before, _ = torch.cuda.mem_get_info()
    graphs.capture(runner.forward, runner.builder, context.workspace)
    runner.graphs = graphs
    free_after, _ = torch.cuda.mem_get_info()
    if free_before - free_after > GRAPH_RESERVE_BYTES:
        raise ValueError(
            f"{len(graphs.decodes) + len(graphs.mixed)} CUDA graphs take "
            f"{(free_before - free_after) / 2**30:.1f} GiB, {GRAPH_RESERVE_BYTES / 2**30:.0f} GiB "
            "are kept for them; lower --max-batch-size or use --cuda-graphs off"
        )
    log.info(
        "%d CUDA graphs take %d MiB, workspaces %d MiB",
        len(graphs.decodes) + len(graphs.mixed),
        (free_before - free_after) >> 20,
        context.workspace.num_bytes >> 20,
    )


def _sampler(
    config: WorkerConfig, model_config: ModelConfig, place: Placement
) -> KernelSampler | None:
    if place.context is None:
        return None
    return KernelSampler(
        max_rows=config.max_batch_size,
        vocab_size=model_config.vocab_size,
        device=place.device,
        pdl=place.context.pdl,
    )


def _warm_up_shape(
    config: WorkerConfig, max_model_len: int, step_tokens: int, device: torch.device
) -> dict[str, int]:
    """The largest steps on CUDA; on a CPU, where nothing is compiled, small ones."""
    on_cuda = device.type == "cuda"
    return {
        "num_tokens": step_tokens if on_cuda else min(_CPU_WARM_UP_TOKENS, step_tokens),
        "num_sequences": config.max_batch_size if on_cuda else 1,
        "max_model_len": max_model_len,
        "block_size": config.block_size,
    }


def _warm_up(runner: Runner, shape: dict[str, int]) -> int:
    """Run made-up steps.

    Returns:
        Bytes of device memory they took at their peak beyond what stays, 0 on a CPU.
    """
    if runner.on_cuda:
        torch.cuda.reset_peak_memory_stats()
    for step in warm_up_steps(**shape):
        runner.launch(step).result()
    if not runner.on_cuda:
        return 0
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
