"""From flags to a rank that is ready to run steps.

Owns the order: group → model → weights → kernels → self-check → KV cache → graphs → runner. Knows
nothing of gRPC.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from typing import NamedTuple

import torch

from moe.base.context import KernelContext, make_context
from moe.base.fp8_format import Fp8Format
from moe.base.parallel import ParallelConfig
from moe.config import resolve_runner
from workers.attention.any import AnyAttention
from workers.attention.kv_cache import FP8, KVCache, unused_bytes
from workers.attention.mla_spec import MlaSpec
from workers.checkpoint import Checkpoint
from workers.config import WorkerConfig
from workers.config_json.model_config import ModelConfig
from workers.distributed import Groups, expert_groups, join, ranks_here
from workers.model_checkpoint import open_checkpoint
from workers.models.base import BuildContext, Model
from workers.models.decoder import Decoder
from workers.rank import graph_capture, kv_sizing
from workers.rank.compile_ahead import compile_ahead
from workers.rank.load_progress import load_progress
from workers.rank.model_plan import check_plan
from workers.rank.runner_factory import RunnerFactory, device_name, num_kept_states
from workers.scale_blocks import with_quantization
from workers.self_check.checks import check_rank
from workers.step.graphs import NO_GRAPHS
from workers.step.runner import Runner
from workers.weight_loading import LoadedWeights, load_weights, make_up_weights

log = logging.getLogger(__name__)

_CUDA_STEP_TOKENS = 8192  # prefills below 2k tokens waste reads of expert weights
_CPU_STEP_TOKENS = 1024
_TILE = 16  # sides of scales' blocks are multiples

_CACHE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "fp8_e4m3": FP8}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRank:
    """A rank that is ready to run steps, and its capacity."""

    runner: Runner
    model: Model
    groups: Groups
    model_config: ModelConfig
    loaded: LoadedWeights
    max_model_len: int
    max_num_batched_tokens: int
    num_blocks: int
    timed_tokens: int
    timed_seconds: float
    device_name: str
    dtype: torch.dtype
    kv_cache_dtype: str


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one; the rank's own card by LOCAL_RANK.

    Raises:
        ValueError: a CUDA device is required and absent, or there are fewer cards than ranks.
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
    model_config = with_quantization(
        model_config, config.quantization, parallel, made_up=config.makes_up_weights
    )
    settings = _settings(config, model_config, device)
    checkpoint = None
    if not config.makes_up_weights:
        checkpoint, model_config = open_checkpoint(config.model, model_config)
    if context is None and device.type == "cuda":
        context = make_context(device, settings.dtype)
    if context is not None:
        _check_blocks(model_config)
    groups = join(parallel, device)
    build = BuildContext(
        groups=groups,
        expert_groups=expert_groups(groups, parallel),
        parallel=parallel,
        moe_runner=resolve_runner(config.moe_runner),
        max_positions=settings.max_model_len,
        max_tokens=settings.step_tokens,
        context=context,
        dtype=settings.dtype,
        device=device,
        packed_experts=checkpoint is not None and checkpoint.packed_experts,
        packed_scales=checkpoint is not None and checkpoint.packed_scales,
        quantization=model_config.quantization,
    )
    check_plan(model_config, build, unused_bytes=unused_bytes(device, ranks_here()))
    model = Decoder(model_config, build)
    loaded = _load(model, checkpoint, config)
    log.info("rank %d read %d bytes of weights", groups.rank, loaded.bytes_read)
    runner, timed_tokens, timed_seconds = _make_runner(
        model, config, model_config, build, settings.kv_cache_dtype
    )
    return LoadedRank(
        runner=runner,
        model=model,
        groups=groups,
        model_config=model_config,
        loaded=loaded,
        max_model_len=settings.max_model_len,
        max_num_batched_tokens=settings.step_tokens,
        num_blocks=runner.forward.cache.num_blocks,
        timed_tokens=timed_tokens,
        timed_seconds=timed_seconds,
        device_name=device_name(device),
        dtype=settings.dtype,
        kv_cache_dtype=settings.kv_cache_dtype,
    )


def _make_runner(
    model: Decoder,
    config: WorkerConfig,
    model_config: ModelConfig,
    build: BuildContext,
    kv_cache_dtype: str,
) -> tuple[Runner, int, float]:
    """The runner that serves, on a cache of all memory that is left; and the tokens and seconds of
    a timed prefill."""
    factory = RunnerFactory(model, config, model_config, build, kv_cache_dtype)
    cache_dtype = _CACHE_DTYPES[kv_cache_dtype]
    sizes = kv_sizing.cache_sizes(
        model,
        model_config,
        config.block_size,
        cache_dtype,
        config.max_batch_size + num_kept_states(config),
    )
    if graph_capture.launches_blindly(config, build):
        compile_ahead(factory, model.of_each_kind(model_config), sizes, config, build)
    if config.self_check == "on":
        sampler, vocab_size = factory.sampler.triton, model_config.vocab_size
        check_rank(model, factory.builder, sampler, sizes, build, vocab_size=vocab_size)
    num_blocks = kv_sizing.num_cache_blocks(factory, sizes, config, build)
    forward = factory.forward(KVCache(sizes, num_blocks, build.device))
    graphs = NO_GRAPHS
    if graph_capture.capturable(config, build):
        graphs = graph_capture.capture_graphs(forward, factory.builder, config, build)
    runner = factory.runner(forward, graphs)
    timed_tokens, timed_seconds = kv_sizing.time_prefill(runner, config, build)
    if model.expert_load is not None:
        model.expert_load.reset()  # it has counted made-up steps
    return runner, timed_tokens, timed_seconds


def _set_up(device: torch.device) -> None:
    """Take the card, or this rank's share of the machine's cores."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # The default stream cannot be captured.
        torch.cuda.set_stream(torch.cuda.Stream(device))
    elif "OMP_NUM_THREADS" not in os.environ:
        # One core is left to the frontend.
        torch.set_num_threads(max(1, (len(os.sched_getaffinity(0)) - 1) // ranks_here()))


def _check_blocks(config: ModelConfig) -> None:
    """Refuse blocks that kernels' tiles would cut."""
    said = None if config.quantization is None else config.quantization.weight_format
    block = said.block if isinstance(said, Fp8Format) else None
    if block is not None and any(side % _TILE for side in block):
        raise ValueError(
            f"weight_block_size is {list(block)}; a GPU computes blocks with sides that are "
            f"multiples of {_TILE}: serve the model's checkpoint in bfloat16"
        )


class _Settings(NamedTuple):
    """What flags, model and device decide before anything is built."""

    dtype: torch.dtype
    kv_cache_dtype: str
    max_model_len: int
    step_tokens: int


def _settings(config: WorkerConfig, model: ModelConfig, device: torch.device) -> _Settings:
    step_tokens = config.max_num_batched_tokens or (
        _CUDA_STEP_TOKENS if device.type == "cuda" else _CPU_STEP_TOKENS
    )
    if step_tokens < config.max_batch_size:
        raise ValueError(
            f"--max-num-batched-tokens {step_tokens} is below --max-batch-size "
            f"{config.max_batch_size}; each running sequence needs a token a step"
        )
    dtype = _dtype(config.dtype, model.dtype, device)
    return _Settings(
        dtype,
        _kv_cache_dtype(config.kv_cache_dtype, dtype, model.cached[0], device),
        _max_model_len(config.max_model_len, model),
        step_tokens,
    )


def _dtype(flag: str, checkpoint: str, device: torch.device) -> torch.dtype:
    """``auto``: bfloat16 on CUDA, float32 on CPU, where it is faster and exact."""
    if flag == "auto":
        flag = "bfloat16" if device.type == "cuda" and checkpoint != "float32" else "float32"
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[flag]


def _kv_cache_dtype(
    flag: str, dtype: torch.dtype, attention: AnyAttention, device: torch.device
) -> str:
    """A key of _CACHE_DTYPES."""
    if flag == "auto":
        return str(dtype).removeprefix("torch.")
    if isinstance(attention, MlaSpec):
        raise ValueError(f"--kv-cache-dtype {flag} is not built for latent attention; leave it out")
    if attention.key_width % 4:
        raise ValueError(
            f"--kv-cache-dtype {flag} stores four numbers a word, and head_dim is "
            f"{attention.key_width}; leave it out"
        )
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < (8, 9):
        raise ValueError(
            f"--kv-cache-dtype {flag} needs a card of compute capability 8.9 or above, this one "
            f"has {capability[0]}.{capability[1]}; leave it out"
        )
    return flag


def _max_model_len(flag: int | None, model: ModelConfig) -> int:
    """Also above max_position_embeddings where the rotary embedding reaches further."""
    if flag is None:
        return model.max_position_embeddings
    for rope in model.ropes:
        rope.check_length(flag, model.max_position_embeddings)
    return flag


def _load(model: Model, checkpoint: Checkpoint | None, config: WorkerConfig) -> LoadedWeights:
    if checkpoint is None:
        with torch.inference_mode():
            make_up_weights(model.checkpoint_slices(), config.seed)
        digest = hashlib.sha256((config.model / "config.json").read_bytes()).hexdigest()
        return LoadedWeights(bytes_read=0, sha256=digest)
    with torch.inference_mode():
        return load_weights(
            model.checkpoint_slices(),
            checkpoint,
            ignore=model.tied_weights,
            progress=load_progress(config.load_progress),
        )
