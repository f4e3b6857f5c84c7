"""Makes the messages that describe the model, the server and its load.

Owns the conversion from the workers' description and the engine's snapshot to `switchyard.v1`.
Knows nothing of requests.
"""

from __future__ import annotations

import dataclasses

from google.protobuf import timestamp_pb2

from frontend.backend import Backend
from frontend.engine.load import EngineLoad
from frontend.engine.step_stats import StepTotals
from switchyard.v1 import inference_pb2 as pb


def model_info(backend: Backend, name: str) -> pb.GetModelInfoResponse:
    """Facts of the model."""
    info = backend.info
    defaults = dataclasses.asdict(backend.defaults)
    return pb.GetModelInfoResponse(
        model=name,
        architecture=info.architecture,
        max_context_tokens=info.max_model_len,
        vocab_size=info.vocab_size,
        eos_token_ids=backend.end_token_ids,
        weights_sha256=info.weights_sha256,
        default_sampling=pb.SamplingParams(
            **{field: value for field, value in defaults.items() if value is not None}
        ),
        has_chat_template=backend.tokenizer is not None and backend.tokenizer.has_chat_template,
        tool_format=backend.tool_format.name,
        reasoning_format="" if backend.thought_tags is None else backend.thought_tags.begin,
    )


def server_info(
    backend: Backend, version: str, started: timestamp_pb2.Timestamp
) -> pb.GetServerInfoResponse:
    """Facts of the server and its workers."""
    info = backend.info
    replicas = info.data_parallel_size
    return pb.GetServerInfoResponse(
        version=version,
        started=started,
        world_size=info.world_size,
        max_running_requests=info.max_batch_size * replicas,
        max_queued_requests=backend.max_queued_requests,
        max_prompt_tokens=info.max_model_len - 1,
        tensor_parallel_size=info.tensor_parallel_size,
        data_parallel_size=replicas,
        expert_parallel_size=info.expert_parallel_size,
        moe_ep_backend=info.moe_ep_backend,
        device=info.device,
        dtype=info.dtype,
        kv_cache_tokens=info.cache_groups.told_tokens(info.num_blocks) * replicas,
        block_size=info.block_size,
        bytes_per_second=info.bytes_per_second,
        flops_per_second=info.flops_per_second,
        graph_batch_sizes=info.graph_batch_sizes,
        quantization=info.quantization,
        kv_cache_dtype=info.kv_cache_dtype,
    )


def load(load: EngineLoad) -> pb.GetLoadResponse:
    """The engine's snapshot."""
    rates = load.rates
    return pb.GetLoadResponse(
        running_requests=load.running_requests,
        queued_requests=load.queued_requests,
        kv_cache_usage=load.kv_cache_usage,
        generated_tokens_per_second=rates.generated_tokens_per_second,
        queued_prompt_tokens=load.queued_prompt_tokens,
        preemptions=load.preemptions,
        prefix_query_tokens=load.prefix_query_tokens,
        prefix_hit_tokens=load.prefix_hit_tokens,
        floor_share=rates.floor_share,
        decode_floor_share=rates.decode_floor_share,
        device_busy=rates.device_busy,
        step_seconds=rates.step_seconds,
        idle_seconds_per_step=rates.idle_seconds_per_step,
        steps=_step_totals(rates.steps),
        decode_steps=_step_totals(rates.decode_steps),
        worker_restarts=load.worker_restarts,
        replayed_requests=load.replayed_requests,
        restarting=load.restarting,
        kept_states=load.kept_states,
        kept_state_bytes=load.kept_state_bytes,
    )


def _step_totals(totals: StepTotals) -> pb.StepTotals:
    return pb.StepTotals(
        steps=totals.steps,
        device_seconds=totals.device_seconds,
        floor_seconds=totals.floor_seconds,
        idle_seconds=totals.idle_seconds,
        bytes_moved=totals.bytes_moved,
        flops=totals.flops,
    )
