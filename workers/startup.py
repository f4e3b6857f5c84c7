"""From flags to a rank that is ready to run steps.

Owns the order: group → model → weights → warm-up → KV cache. Knows nothing of gRPC.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from typing import Any

import torch
from torch import nn

from moe.config import ParallelConfig, resolve_runner
from workers.batch import BatchBuilder
from workers.config import ModelConfig, WorkerConfig
from workers.distributed import Groups, expert_groups, join
from workers.kv_cache import KVCache, bytes_per_block, free_bytes
from workers.layers.attention import gather_bytes
from workers.models import MODELS
from workers.models.base import Placement
from workers.runner import Runner, warm_up_blocks, warm_up_steps
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


def start(config: WorkerConfig, parallel: ParallelConfig) -> Rank:
    """Build everything on this rank.

    Raises:
        ValueError: flags, model folder or memory do not fit; one line saying why.
    """
    device = choose_device(config.device)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
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
    groups = join(parallel, device)
    place = Placement(
        groups=groups,
        expert_groups=expert_groups(groups, parallel),
        parallel=parallel,
        moe_runner=resolve_runner(config.moe_runner),
        max_positions=max_model_len,
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
        device=device,
    )
    sizes = {
        "num_layers": model_config.num_layers,
        "block_size": config.block_size,
        "num_kv_heads": model.num_kv_heads,
        "head_dim": model_config.head_dim,
        "dtype": dtype,
    }
    workspace = max(
        _warm_up(model, builder, config, max_model_len, step_tokens, sizes),
        # The warm-up's decodes have short contexts.
        gather_bytes(model.num_kv_heads, model_config.head_dim, dtype),
    )
    budget = free_bytes(device, config.memory_fraction, workspace, ranks_here)
    num_blocks = groups.minimum(
        _num_blocks(config, max_model_len, bytes_per_block(**sizes), budget)
    )
    cache = KVCache(num_blocks=num_blocks, device=device, **sizes)
    return Rank(
        runner=Runner(model, cache, builder, reports=groups.tp_rank == 0),
        groups=groups,
        model_config=model_config,
        loaded=loaded,
        max_model_len=max_model_len,
        max_num_batched_tokens=step_tokens,
        num_blocks=num_blocks,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        dtype=dtype,
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


def _warm_up(
    model: nn.Module,
    builder: BatchBuilder,
    config: WorkerConfig,
    max_model_len: int,
    step_tokens: int,
    sizes: dict[str, Any],
) -> int:
    """Run the largest steps on a cache of their own, which is dropped.

    Returns:
        Bytes of device memory the steps took at their peak, 0 on CPU.
    """
    on_cuda = builder.device.type == "cuda"
    shape = {
        "num_tokens": step_tokens if on_cuda else min(_CPU_WARM_UP_TOKENS, step_tokens),
        "num_sequences": config.max_batch_size if on_cuda else 1,
        "max_model_len": max_model_len,
        "block_size": config.block_size,
    }
    cache = KVCache(num_blocks=warm_up_blocks(**shape), device=builder.device, **sizes)
    runner = Runner(model, cache, builder, reports=True)
    before = torch.cuda.memory_allocated() if on_cuda else 0
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    for step in warm_up_steps(**shape):
        runner.launch(step).result()
    return torch.cuda.max_memory_allocated() - before if on_cuda else 0


def _num_blocks(config: WorkerConfig, max_model_len: int, block_bytes: int, budget: int) -> int:
    """Blocks of the KV cache: as many as fit, at most what all slots together can use."""
    if config.num_blocks is not None:
        return config.num_blocks
    most = config.max_batch_size * -(-max_model_len // config.block_size)
    num_blocks = min(most, budget // block_bytes)
    if num_blocks < 1:
        raise ValueError(
            f"--memory-fraction {config.memory_fraction} leaves {budget / 2**30:.1f} GiB for the "
            f"KV cache, one block takes {block_bytes / 2**20:.1f} MiB; raise it, or lower "
            "--max-num-batched-tokens or --max-batch-size"
        )
    return num_blocks
