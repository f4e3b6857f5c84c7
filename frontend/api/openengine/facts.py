"""What `openengine.v1` is told of server, model and load. Knows nothing of requests."""

from __future__ import annotations

import time

from frontend.bounds import MAX_SAMPLES, MAX_TOP_LOGPROBS
from switchyard.openengine.v1 import openengine_pb2 as oe
from switchyard.v1 import inference_pb2 as pb

ENGINE_NAME = "switchyard"
SCHEMA_REVISION = 1
SCHEMA_RELEASE = "v0.1.0"
"""The release of the protocol that openengine.proto was written after."""
_GUIDES = (
    oe.GUIDED_DECODING_MODE_JSON_SCHEMA,
    oe.GUIDED_DECODING_MODE_REGEX,
    oe.GUIDED_DECODING_MODE_EBNF_GRAMMAR,
    oe.GUIDED_DECODING_MODE_CHOICE,
    oe.GUIDED_DECODING_MODE_JSON_OBJECT,
)


def server_info(
    server: pb.GetServerInfoResponse, model: pb.GetModelInfoResponse, instance_id: str
) -> oe.ServerInfo:
    """The server, whose replicas of attention are one rank."""
    return oe.ServerInfo(
        engine_name=ENGINE_NAME,
        engine_version=server.version,
        engine_role=oe.ENGINE_ROLE_AGGREGATED,
        instance_id=instance_id,
        supported_models=[model.model],
        parallelism=oe.ParallelismInfo(
            tensor_parallel_size=server.tensor_parallel_size,
            pipeline_parallel_size=1,
            data_parallel_size=1,
        ),
        schema_revision=SCHEMA_REVISION,
        minimum_client_revision=SCHEMA_REVISION,
        schema_release=SCHEMA_RELEASE,
        capacity=oe.DeploymentCapacity(
            kv_block_size=server.block_size,
            total_kv_blocks=_num_blocks(server),
            max_running_requests=server.max_running_requests,
            max_loras=0,
        ),
    )


def model_info(model: pb.GetModelInfoResponse, *, has_tokenizer: bool) -> oe.ModelInfo:
    """The model, and what a request of it may ask for."""
    logprobs = oe.LogprobCapabilities(
        supported=True,
        candidate_selection_modes=[oe.CANDIDATE_TOKEN_SELECTION_MODE_TOP_N],
        max_top_n=MAX_TOP_LOGPROBS,
    )
    return oe.ModelInfo(
        model_id=model.model,
        served_model_name=model.model,
        max_context_length=model.max_context_tokens,
        supports_text_input=has_tokenizer,
        supports_token_ids_input=True,
        generation=oe.GenerationCapabilities(
            prompt_logprobs=logprobs,
            output_logprobs=logprobs,
            guided_decoding=oe.GuidedDecodingCapabilities(
                supported=has_tokenizer, modes=_GUIDES if has_tokenizer else ()
            ),
            max_num_sequences=MAX_SAMPLES,
            supports_priority=True,
            supports_stop_in_output=True,
            supports_cache_salt=False,
            supports_prefix_cache_bypass=False,
        ),
        supports_lora=False,
        supports_multimodal=False,
    )


def load_info(
    load: pb.GetLoadResponse, server: pb.GetServerInfoResponse, instance_id: str
) -> oe.LoadInfo:
    """The load of all replicas of attention."""
    num_blocks = _num_blocks(server)
    return oe.LoadInfo(
        instance_id=instance_id,
        timestamp_unix_nanos=time.time_ns(),
        running_requests=load.running_requests,
        queued_requests=load.queued_requests,
        used_kv_blocks=round(load.kv_cache_usage * num_blocks),
        total_kv_blocks=num_blocks,
        waiting_tokens=load.queued_prompt_tokens,
    )


def _num_blocks(server: pb.GetServerInfoResponse) -> int:
    return int(server.kv_cache_tokens // server.block_size)
