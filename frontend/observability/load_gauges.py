"""Metrics of the engine's load and of the experts, under the names that dashboards know.

Owns the tables of names and meanings. Knows nothing of requests or of scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from frontend.engine.load import EngineLoad
from frontend.observability.metric_families import Families
from switchyard.v1 import inference_pb2 as pb

_Read = Callable[[EngineLoad], float]
# Name, meaning, and where the snapshot has it.
GAUGES: tuple[tuple[str, str, _Read], ...] = (
    ("vllm:num_requests_running", "Requests that run now.", lambda x: x.running_requests),
    ("vllm:num_requests_waiting", "Requests that wait for admission.", lambda x: x.queued_requests),
    (
        "vllm:kv_cache_usage_perc",
        "Share of the KV cache's blocks in use, 0 to 1.",
        lambda x: x.kv_cache_usage,
    ),
    (
        "switchyard:kept_states",
        "Prefixes whose state is kept, of models whose layers keep one.",
        lambda x: x.kept_states,
    ),
    (
        "switchyard:kept_state_bytes",
        "Bytes of the states of prefixes, on each rank.",
        lambda x: x.kept_state_bytes,
    ),
    (
        "switchyard:queued_prompt_tokens",
        "Prompt tokens of waiting and running requests that no step has computed.",
        lambda x: x.queued_prompt_tokens,
    ),
    (
        "switchyard:generated_tokens_per_second",
        "Tokens generated per second over the last 5 seconds.",
        lambda x: x.rates.generated_tokens_per_second,
    ),
    (
        "switchyard:floor_share",
        "Least time that the steps of the last 5 seconds could take, over the time they took.",
        lambda x: x.rates.floor_share,
    ),
    (
        "switchyard:decode_floor_share",
        "Least time that decode-only steps of the last 5 seconds could take, over the time taken.",
        lambda x: x.rates.decode_floor_share,
    ),
    (
        "switchyard:device_busy",
        "Share of the last 5 seconds in which the devices worked.",
        lambda x: x.rates.device_busy,
    ),
    (
        "switchyard:step_seconds",
        "Mean seconds of device work in a step of the last 5 seconds.",
        lambda x: x.rates.step_seconds,
    ),
    (
        "switchyard:idle_seconds_per_step",
        "Mean seconds that the devices waited for a step on its way, over the last 5 seconds.",
        lambda x: x.rates.idle_seconds_per_step,
    ),
    (
        "switchyard:restarting",
        "1 while the frontend waits for lost workers to come back, else 0.",
        lambda x: x.restarting,
    ),
)
COUNTERS: tuple[tuple[str, str, _Read], ...] = (
    (
        "vllm:num_preemptions",
        "Times that a running request gave up its KV blocks.",
        lambda x: x.preemptions,
    ),
    (
        "vllm:prefix_cache_queries",
        "Prompt tokens that were looked up in the prefix cache.",
        lambda x: x.prefix_query_tokens,
    ),
    (
        "vllm:prefix_cache_hits",
        "Prompt tokens that were found in the prefix cache.",
        lambda x: x.prefix_hit_tokens,
    ),
    (
        "switchyard:worker_restarts",
        "Times that the workers were lost and came back.",
        lambda x: x.worker_restarts,
    ),
    (
        "switchyard:replayed_requests",
        "Requests that continued after a loss of the workers.",
        lambda x: x.replayed_requests,
    ),
)
# Fields of StepTotals, once for all steps and once for those that only decode.
STEP_COUNTERS: tuple[tuple[str, str], ...] = (
    ("steps", "Steps that the workers finished."),
    ("device_seconds", "Seconds that the devices worked on steps."),
    ("floor_seconds", "Least seconds that the devices could have needed for the steps."),
    ("idle_seconds", "Seconds that the devices waited for a step on its way."),
    ("bytes_moved", "Bytes of memory that the steps had to move."),
    ("flops", "Floating-point operations that the steps had to do."),
)


def cache_family(families: Families, server: pb.GetServerInfoResponse) -> Metric:
    """The size of the KV cache as labels of a 1, which is how routers read it from vLLM."""
    family = GaugeMetricFamily(
        "vllm:cache_config_info",
        "Size of the KV cache, over all replicas of attention: the labels tell.",
        labels=("model_name", "block_size", "num_gpu_blocks"),
    )
    num_blocks = server.kv_cache_tokens // server.block_size
    family.add_metric((families.model, str(server.block_size), str(num_blocks)), 1)
    return family


def load_families(families: Families, load: EngineLoad) -> Iterator[Metric]:
    """Every metric of a load snapshot."""
    for name, meaning, read in GAUGES:
        yield families.gauge(name, meaning, read(load))
    for name, meaning, read in COUNTERS:
        yield families.counter(name, meaning, read(load))
    for field, meaning in STEP_COUNTERS:
        values: dict[tuple[str, ...], float] = {
            (kind,): getattr(totals, field)
            for kind, totals in (("all", load.rates.steps), ("decode", load.rates.decode_steps))
        }
        yield families.counters(f"switchyard:{field}", meaning, ("kind",), values)


def expert_families(families: Families, experts: pb.GetExpertLoadResponse) -> Iterator[Metric]:
    """Two series for each sparse layer; one for each expert would be thousands."""
    if not experts.layers:
        return
    labels = ("model_name", "layer")
    imbalance = GaugeMetricFamily(
        "switchyard:expert_imbalance",
        "Tokens of the busiest rank over the mean of all ranks, by layer; 1 is even.",
        labels=labels,
    )
    tokens = CounterMetricFamily(
        "switchyard:expert_tokens",
        "Tokens that a layer routed, counted once for each of their experts.",
        labels=labels,
    )
    for layer in experts.layers:
        values = (families.model, str(layer.layer))
        imbalance.add_metric(values, layer.imbalance)
        tokens.add_metric(values, sum(layer.tokens))
    yield imbalance
    yield tokens
