"""What /metrics shows, read back with Prometheus' own parser; and what dashboards ask of it."""

from __future__ import annotations

import asyncio
import bisect
import dataclasses
import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from frontend.engine.load import EngineLoad
from frontend.engine.step_stats import StepRates, StepStatsWindow, StepTotals
from frontend.errors import Code, RequestError
from frontend.observability.load_gauges import GAUGES
from frontend.observability.metric_families import REQUEST_SECONDS, Histogram
from frontend.observability.metrics import Metrics, Sources
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.records import record, refusal

ROOT = Path(__file__).parents[3]
RATES = StepRates(
    generated_tokens_per_second=70.5, floor_share=0.5, decode_floor_share=0.75, device_busy=0.9,
    step_seconds=0.004, idle_seconds_per_step=0.0001,
    steps=StepTotals(steps=11, device_seconds=2.5, flops=1e30), decode_steps=StepTotals(steps=7),
)  # fmt: skip
LOAD = EngineLoad(
    running_requests=3, queued_requests=4, kv_cache_usage=0.25, queued_prompt_tokens=50,
    preemptions=6, prefix_query_tokens=80, prefix_hit_tokens=20,
    worker_restarts=2, replayed_requests=9, kept_states=12, kept_state_bytes=12 << 21,
    restarting=False, rates=RATES,
)  # fmt: skip
EXPERTS = pb.GetExpertLoadResponse(
    layers=[{"layer": 1, "tokens": [1, 2, 3, 4], "imbalance": 1.4}, {"layer": 3, "tokens": [5, 5]}]
)
# As vLLM's documentation has them, which dashboards and autoscalers were written for.
VLLM = {
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "vllm:num_preemptions_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total",
    "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total",
    "vllm:request_success_total", "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket", "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket", "vllm:request_queue_time_seconds_bucket",
    "vllm:request_inference_time_seconds_bucket", "vllm:request_prefill_time_seconds_bucket",
    "vllm:request_decode_time_seconds_bucket", "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket", "vllm:iteration_tokens_total_bucket",
}  # fmt: skip

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Page:
    """A rendered page by name and labels; ``model_name`` is checked and left out."""

    def __init__(self, metrics: Metrics) -> None:
        content, self.content_type = metrics.render()
        self.names: set[str] = set()
        self._values: Samples = {}
        for family in text_string_to_metric_families(content.decode()):
            for sample in family.samples:
                labels = dict(sample.labels)
                if not sample.name.startswith("process_"):
                    assert labels.pop("model_name") == "demo"
                self.names.add(sample.name)
                key = (sample.name, frozenset(labels.items()))
                assert key not in self._values, f"{key} is there twice"
                self._values[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        return self._values[name, frozenset(labels.items())]


# Two replicas of attention, 48 blocks each.
SERVER = pb.GetServerInfoResponse(block_size=16, kv_cache_tokens=2 * 48 * 16)


async def no_experts() -> pb.GetExpertLoadResponse:
    return pb.GetExpertLoadResponse()


def sources(**changes: object) -> Sources:
    facts = {"load": lambda: LOAD, "experts": no_experts, "server": lambda: SERVER}
    return Sources(**(facts | {"ready": lambda: True, "denied": lambda: 13} | changes))


@pytest.fixture
async def metrics() -> Metrics:
    watching = Metrics("demo")
    watching.attach(sources())
    return watching


async def test_gauges_and_counters_are_what_load_says_at_the_scrape(metrics: Metrics) -> None:
    page = Page(metrics)
    assert page("vllm:num_requests_running") == 3
    assert page("vllm:num_requests_waiting") == 4
    assert page("vllm:kv_cache_usage_perc") == 0.25
    assert page("vllm:cache_config_info", block_size="16", num_gpu_blocks="96") == 1
    assert page("vllm:num_preemptions_total") == 6
    assert page("vllm:prefix_cache_queries_total") == 80
    assert page("vllm:prefix_cache_hits_total") == 20
    assert page("switchyard:kept_states") == 12
    assert page("switchyard:kept_state_bytes") == 12 << 21
    assert page("switchyard:floor_share") == 0.5
    assert page("switchyard:decode_floor_share") == 0.75
    assert page("switchyard:worker_restarts_total") == 2
    assert page("switchyard:replayed_requests_total") == 9
    assert page("switchyard:steps_total", kind="all") == 11
    assert page("switchyard:steps_total", kind="decode") == 7
    assert page("switchyard:flops_total", kind="all") == 1e30
    assert page("switchyard:ready") == 1
    assert page("switchyard:unauthenticated_total") == 13
    assert page.content_type.startswith("text/plain")


IDLE = EngineLoad(
    running_requests=0, queued_requests=0, kv_cache_usage=0.0, queued_prompt_tokens=0,
    preemptions=0, prefix_query_tokens=0, prefix_hit_tokens=0, worker_restarts=0,
    replayed_requests=0, kept_states=0, kept_state_bytes=0, restarting=False,
    rates=StepStatsWindow().rates(time.monotonic()),
)  # fmt: skip


async def test_every_field_of_a_load_has_a_metric() -> None:
    """Each field, changed alone, changes the page: none is forgotten when GetLoad grows."""
    metrics = Metrics("demo")
    own = {field.name for field in dataclasses.fields(EngineLoad)} - {"rates"}
    rates = {field.name for field in dataclasses.fields(StepRates)}
    assert own | rates == {field.name for field in pb.GetLoadResponse.DESCRIPTOR.fields}
    pages = []
    for name in ("", *sorted(own | rates)):
        value: object = StepTotals(steps=1) if name.endswith("steps") else 1
        load = IDLE
        if name in own:
            load = dataclasses.replace(IDLE, **{name: value})
        elif name:
            load = dataclasses.replace(IDLE, rates=dataclasses.replace(IDLE.rates, **{name: value}))
        metrics.attach(sources(load=lambda load=load: load))
        pages.append(_without_process(metrics.render()[0]))
        assert pages[0] != pages[-1] or not name, name


def _without_process(page: bytes) -> list[bytes]:
    return [line for line in page.splitlines() if not line.startswith(b"process_")]


async def test_a_request_is_counted_once_in_all_its_times(metrics: Metrics) -> None:
    metrics.request_ended(record())
    page = Page(metrics)
    for name, seconds in (
        ("time_to_first_token_seconds", 3.0), ("e2e_request_latency_seconds", 8.0),
        ("request_queue_time_seconds", 1.0), ("request_inference_time_seconds", 7.0),
        ("request_prefill_time_seconds", 2.0), ("request_decode_time_seconds", 5.0),
        ("request_time_per_output_token_seconds", 5.0 / 8), ("request_prompt_tokens", 12),
        ("request_generation_tokens", 9),
    ):  # fmt: skip
        assert page(f"vllm:{name}_count") == 1, name
        assert page(f"vllm:{name}_sum") == pytest.approx(seconds), name
    assert page("vllm:prompt_tokens_total") == 12
    assert page("vllm:prompt_tokens_cached_total") == 5
    assert page("vllm:request_success_total", finished_reason="stop") == 1
    assert page("switchyard:requests_total", method="Chat", code="OK") == 1


async def test_a_refusal_has_a_code_and_no_times(metrics: Metrics) -> None:
    metrics.request_ended(refusal())
    page = Page(metrics)
    assert page("switchyard:requests_total", method="Chat", code="RESOURCE_EXHAUSTED") == 1
    assert page("vllm:e2e_request_latency_seconds_count") == 0
    assert page("vllm:prompt_tokens_total") == 0
    assert "vllm:request_success_total" not in page.names


async def test_each_way_to_end_is_vllms_word_for_it(metrics: Metrics) -> None:
    metrics.request_ended(record(finish_reasons=("EOS", "LENGTH", "STOP")))  # three samples
    metrics.request_ended(record(finish_reasons=("ABORTED",)))
    metrics.request_ended(record(code="CANCELLED", finish_reasons=("ABORTED",)))
    metrics.request_ended(record(code="CANCELLED", finish_reasons=()))
    metrics.request_ended(record(code="INTERNAL", finish_reasons=()))
    page = Page(metrics)
    counts = {"stop": 2, "length": 1, "abort": 3, "error": 1}
    for reason, count in counts.items():
        assert page("vllm:request_success_total", finished_reason=reason) == count, reason


async def test_steps_count_each_decode_and_no_latency_after_a_pause(metrics: Metrics) -> None:
    metrics.step_completed(0, 0.0, 512, 1)
    metrics.step_completed(64, 0.004, 64, 64)
    metrics.step_completed(2, 0.0, 2, 2)
    page = Page(metrics)
    assert page("vllm:inter_token_latency_seconds_count") == 64
    assert page("vllm:inter_token_latency_seconds_sum") == pytest.approx(64 * 0.004)
    assert page("vllm:inter_token_latency_seconds_bucket", le="0.004") == 64
    assert page("vllm:inter_token_latency_seconds_bucket", le="0.003") == 0
    assert page("vllm:iteration_tokens_total_count") == 3
    assert page("vllm:iteration_tokens_total_sum") == 578
    assert page("vllm:generation_tokens_total") == 67


async def test_experts_are_two_series_a_layer(metrics: Metrics) -> None:
    async def experts() -> pb.GetExpertLoadResponse:
        return EXPERTS

    metrics.attach(sources(experts=experts))
    assert "switchyard:expert_imbalance" not in Page(metrics).names  # the first scrape asks
    await asyncio.sleep(0)
    page = Page(metrics)
    assert page("switchyard:expert_imbalance", layer="1") == 1.4
    assert page("switchyard:expert_tokens_total", layer="1") == 10
    assert page("switchyard:expert_tokens_total", layer="3") == 10


async def test_a_server_without_workers_still_answers_scrapes() -> None:
    def away() -> pb.GetLoadResponse:
        raise RequestError(Code.UNAVAILABLE, "loading", reason="STARTING")

    async def experts_away() -> pb.GetExpertLoadResponse:
        return away()  # type: ignore[return-value]

    metrics = Metrics("demo")
    Page(metrics)  # before anything is attached
    metrics.attach(sources(load=away, experts=experts_away, ready=lambda: False))
    for _ in range(2):
        page = Page(metrics)
        await asyncio.sleep(0)
    assert page("switchyard:ready") == 0
    assert not page.names & {"vllm:num_requests_running", "vllm:cache_config_info"}


async def test_names_that_dashboards_know_are_there(metrics: Metrics) -> None:
    metrics.request_ended(record())
    assert Page(metrics).names >= VLLM


def test_buckets_are_as_prometheus_counts_them() -> None:
    histogram = Histogram((1, 2, 5))
    values = (0.5, 1, 1.5, 2, 5, 5.1, 100)
    for value in values:
        histogram.observe(value)
    assert histogram.total == sum(values)
    for bound, count in histogram.cumulative():
        assert count == sum(value <= float(bound) for value in values)
    assert all(a < b for a, b in itertools.pairwise(REQUEST_SECONDS))
    assert bisect.bisect(REQUEST_SECONDS, 0.2) > 5  # told apart below a fifth of a second


def test_watching_is_cheap() -> None:
    """Bounds are ten times what an idle machine needs, far below what steps and requests take."""
    metrics, one = Metrics("demo"), record()

    def microseconds(watch: object) -> float:
        def once() -> float:
            start = time.thread_time()
            for _ in range(1000):
                watch()  # type: ignore[operator]
            return (time.thread_time() - start) * 1e3

        return min(once() for _ in range(5))

    assert microseconds(lambda: metrics.step_completed(64, 0.004, 64, 64)) < 10
    assert microseconds(lambda: metrics.request_ended(one)) < 100


# ---- what is deployed beside it ----


def expressions(node: object) -> Iterator[str]:
    """Every ``expr`` or metric query in a dashboard."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query", "definition") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for each in node:
            yield from expressions(each)


DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
NAME = re.compile(r"\b(?:vllm|switchyard):[a-z0-9_]+")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
async def test_a_dashboard_asks_for_metrics_that_exist(path: Path, metrics: Metrics) -> None:
    async def experts() -> pb.GetExpertLoadResponse:
        return EXPERTS

    metrics.attach(sources(experts=experts))
    metrics.request_ended(record())
    metrics.render()
    await asyncio.sleep(0)
    shown = Page(metrics).names
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    asked = list(expressions(dashboard))
    assert len(asked) > 20
    for expression in asked:
        for name in NAME.findall(expression):
            assert name in shown, f"{name} of {expression}"
        assert expression.count("(") == expression.count(")")
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_there_is_a_dashboard_and_a_scrape_of_the_port_it_needs() -> None:
    assert DASHBOARDS
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text(encoding="utf-8"))
    [job] = scrape["scrape_configs"]
    assert job["metrics_path"] == "/metrics"


async def test_every_help_text_is_a_sentence_that_names_what_is_counted(metrics: Metrics) -> None:
    """No two metrics share one, and none needs the line above it."""

    async def experts() -> pb.GetExpertLoadResponse:
        return EXPERTS

    metrics.attach(sources(experts=experts))
    metrics.render()
    await asyncio.sleep(0)
    page = metrics.render()[0].decode()
    helps = dict(re.findall(r"^# HELP ((?:vllm|switchyard):\S+) (.*)$", page, re.M))
    assert len(helps) > 35
    assert len(set(helps.values())) == len(helps)
    for name, text in helps.items():
        assert re.fullmatch(r"[A-Z1].{20,}\.", text), name
        assert not text.startswith(("Of ", "The same", "Over ")), name


async def test_the_documentation_lists_every_metric_and_no_other(metrics: Metrics) -> None:
    text = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    told = set(NAME.findall(text))

    async def experts() -> pb.GetExpertLoadResponse:
        return EXPERTS

    metrics.attach(sources(experts=experts))
    metrics.request_ended(record())
    metrics.render()
    await asyncio.sleep(0)
    shown = {
        re.sub(r"_(bucket|count|sum)$", "", name)
        for name in Page(metrics).names
        if not name.startswith("process_")
    }
    assert told == shown
    assert {name for name, _, _ in GAUGES} <= told
