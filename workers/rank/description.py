"""What a rank says of itself: to the frontend by Describe, to people in a line when it is ready.

Owns which of the numbers of a loaded rank are told: layout, vocabulary, KV blocks, limits, times.
"""

from __future__ import annotations

from moe.base.parallel import ParallelConfig
from switchyard.release import release
from switchyard.worker.link import PROTOCOL
from switchyard.worker.v1 import worker_pb2
from workers.distributed import ranks_here
from workers.linear_attention.delta_rule import CHUNK
from workers.rank.startup import LoadedRank


def describe(
    ready: LoadedRank, parallel: ParallelConfig, startup_seconds: float
) -> worker_pb2.DescribeResponse:
    """Describe's answer, the same for the rank's whole life.

    Args:
        startup_seconds: from the start of the process until now.
    """
    ceilings, states = ready.runner.measure.device, ready.runner.builder.states
    sizes = ready.model.state_sizes(1)
    return worker_pb2.DescribeResponse(
        protocol=PROTOCOL,
        version=release(),
        rank=ready.groups.rank,
        world_size=ready.groups.world_size,
        local_world_size=ranks_here(),
        tensor_parallel_size=parallel.tp,
        data_parallel_size=parallel.dp,
        expert_parallel_size=parallel.ep,
        moe_ep_backend=parallel.backend,
        architecture=ready.model_config.architecture,
        vocab_size=ready.model_config.vocab_size,
        max_model_len=ready.max_model_len,
        max_batch_size=ready.runner.builder.num_slots,
        max_num_batched_tokens=ready.max_num_batched_tokens,
        block_size=ready.runner.builder.block_size,
        num_blocks=ready.num_blocks,
        eos_token_ids=ready.model_config.eos_token_ids,
        device=ready.device_name,
        dtype=_dtype(ready),
        weights_sha256=ready.loaded.sha256,
        bytes_read=ready.loaded.bytes_read,
        startup_seconds=startup_seconds,
        bytes_per_second=ceilings.bytes_per_second if ceilings else 0.0,
        flops_per_second=ceilings.flops_per_second if ceilings else 0.0,
        graph_batch_sizes=ready.runner.graphs.decodes,
        timed_tokens=ready.timed_tokens,
        timed_seconds=ready.timed_seconds,
        quantization=_quantization(ready),
        kv_cache_dtype=ready.kv_cache_dtype,
        group_windows=[window or 0 for window in ready.model.layer_groups.windows],
        keeps_states=states is not None,
        num_kept_states=0 if states is None else states.num_kept,
        state_interval=0 if states is None else CHUNK,
        state_bytes=0 if sizes is None else sizes.bytes_per_state,
    )


def summary(ready: LoadedRank, parallel: ParallelConfig) -> str:
    """The group in a line: architecture, devices, dtype, what its KV caches hold."""
    blocks = ready.num_blocks // ready.model.layer_groups.num_groups
    tokens = blocks * ready.runner.builder.block_size * parallel.dp
    kv_type = "" if ready.kv_cache_dtype == _dtype(ready) else f" in {ready.kv_cache_dtype}"
    return (
        f"{ready.model_config.architecture} on {ready.groups.world_size} × {ready.device_name}, "
        f"{' '.join(filter(None, (_dtype(ready), _quantization(ready))))}, "
        f"KV cache of {tokens} tokens{kv_type}"
    )


def _dtype(ready: LoadedRank) -> str:
    return str(ready.dtype).removeprefix("torch.")


def _quantization(ready: LoadedRank) -> str:
    quantization = ready.model_config.quantization
    return "" if quantization is None else quantization.weight_format.label
