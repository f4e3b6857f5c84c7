"""The server's load, its facts and its experts as JSON, for pages and scripts that speak no gRPC.

Owns the types of these objects. They have the names of the fields of `switchyard.v1`, where
inference.proto says what each is.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from typing_extensions import TypedDict


class StepTotals(TypedDict):
    """Steps since the start, added up."""

    steps: int
    device_seconds: float
    floor_seconds: float
    idle_seconds: float
    bytes_moved: float
    flops: float


class Load(TypedDict):
    """How busy the server is: GetLoadResponse."""

    running_requests: int
    queued_requests: int
    kv_cache_usage: float
    generated_tokens_per_second: float
    queued_prompt_tokens: int
    preemptions: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    floor_share: float
    decode_floor_share: float
    device_busy: float
    step_seconds: float
    idle_seconds_per_step: float
    steps: StepTotals
    decode_steps: StepTotals
    worker_restarts: int
    replayed_requests: int
    restarting: bool
    kept_states: int
    kept_state_bytes: int


class ServerInfo(TypedDict):
    """The server and its workers: GetServerInfoResponse; ``started`` is in seconds since 1970."""

    version: str
    started: int
    world_size: int
    max_running_requests: int
    max_queued_requests: int
    max_prompt_tokens: int
    tensor_parallel_size: int
    data_parallel_size: int
    expert_parallel_size: int
    moe_ep_backend: str
    device: str
    dtype: str
    kv_cache_tokens: int
    block_size: int
    bytes_per_second: float
    flops_per_second: float
    graph_batch_sizes: list[int]
    quantization: str
    kv_cache_dtype: str


class LayerExpertLoad(TypedDict):
    """One sparse layer, and tokens of each of its experts since the workers' start; 1 is even."""

    layer: int
    tokens: list[int]
    imbalance: float


class ExpertLoad(TypedDict):
    """The sparse layers in the model's order, none of a dense model: GetExpertLoadResponse."""

    layers: list[LayerExpertLoad]


def as_json(message: Message) -> dict[str, Any]:
    """A message's fields, those that are zero too. Numbers stay numbers: protobuf's own JSON has
    64-bit ones as text."""
    return {
        field.name: _value(getattr(message, field.name), of_messages=field.message_type is not None)
        for field in message.DESCRIPTOR.fields
    }


def _value(value: Any, *, of_messages: bool) -> Any:
    if isinstance(value, str | int | float):  # bool is an int
        return value
    if isinstance(value, Timestamp):
        return value.ToSeconds()
    if isinstance(value, Message):
        return as_json(value)
    return [as_json(each) for each in value] if of_messages else list(value)
