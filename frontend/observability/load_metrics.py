"""What GetLoad and GetExpertLoad say, under the names that dashboards know.

Owns the tables of names and meanings. Knows nothing of requests, or of who asks when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from frontend.engine.load import EngineLoad
from frontend.observability.families import Families
from switchyard.v1 import inference_pb2 as pb

_Read = Callable[[EngineLoad], float]
# Name, meaning, and where the snapshot has it.
GAUGES: tuple[tuple[str, str, _Read], ...] = (
    ("vllm:num_requests_running", "Requests that hold a slot.", lambda x: x.running_requests),
    ("vllm:num_requests_waiting", "Requests that wait for one.", lambda x: x.queued_requests),
    ("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", lambda x: x.kv_cache_usage),
    (
        "switchyard:queued_prompt_tokens",
        "Prompt tokens that no step has computed yet.",
        lambda x: x.queued_prompt_tokens,
    ),
    (
        "switchyard:generated_tokens_per_second",
        "Over the last 5 seconds.",
        lambda x: x.rates.generated_tokens_per_second,
    ),
    (
        "switchyard:floor_share",
        "Least time the devices could need over the time they took, last 5 seconds.",
        lambda x: x.rates.floor_share,
    ),
    (
        "switchyard:decode_floor_share",
        "The same of steps that only decode.",
        lambda x: x.rates.decode_floor_share,
    ),
    (
        "switchyard:device_busy",
        "Share of the last 5 seconds in which the devices worked.",
        lambda x: x.rates.device_busy,
    ),
    (
        "switchyard:step_seconds",
        "Mean time of the devices in one step, last 5 seconds.",
        lambda x: x.rates.step_seconds,
    ),
    (
        "switchyard:idle_seconds_per_step",
        "Mean wait of the devices before a step that was on its way, last 5 seconds.",
        lambda x: x.rates.idle_seconds_per_step,
    ),
    ("switchyard:restarting", "1 while lost workers are awaited.", lambda x: x.restarting),
)
COUNTERS: tuple[tuple[str, str, _Read], ...] = (
    (
        "vllm:num_preemptions",
        "Times a running request gave up its KV blocks.",
        lambda x: x.preemptions,
    ),
    (
        "vllm:prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache.",
        lambda x: x.prefix_query_tokens,
    ),
    ("vllm:prefix_cache_hits", "Of these, found.", lambda x: x.prefix_hit_tokens),
    (
        "switchyard:worker_restarts",
        "Times the workers were lost and came back.",
        lambda x: x.worker_restarts,
    ),
    (
        "switchyard:replayed_requests",
        "Requests that went on after a loss.",
        lambda x: x.replayed_requests,
    ),
)
# Fields of StepTotals, once for all steps and once for those that only decode.
STEP_COUNTERS: tuple[tuple[str, str], ...] = (
    ("steps", "Steps the workers finished."),
    ("device_seconds", "Seconds the devices worked on them."),
    ("floor_seconds", "Least seconds they could have needed."),
    ("idle_seconds", "Seconds the devices waited for a step that was on its way."),
    ("bytes_moved", "Bytes that had to move."),
    ("flops", "Floating-point operations that had to be done."),
)


def load_families(families: Families, load: EngineLoad) -> Iterator[Metric]:
    """Everything a load snapshot says."""
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
    """Two series a sparse layer: one an expert would be thousands."""
    if not experts.layers:
        return
    labels = ("model_name", "layer")
    imbalance = GaugeMetricFamily(
        "switchyard:expert_imbalance",
        "Tokens of the rank with most over the mean of the ranks; 1 is even.",
        labels=labels,
    )
    tokens = CounterMetricFamily(
        "switchyard:expert_tokens", "Tokens routed, once for each expert.", labels=labels
    )
    for layer in experts.layers:
        values = (families.model, str(layer.layer))
        imbalance.add_metric(values, layer.imbalance)
        tokens.add_metric(values, sum(layer.tokens))
    yield imbalance
    yield tokens
