"""Prometheus metrics: vLLM's names where the meaning is the same, ours for the rest.

Owns every name and what is counted for it; docs/observability.md lists them. Gauges are read when
somebody scrapes, from what the sources say then. Knows no transport: `render` gives a page's bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from frontend.engine.load import EngineLoad
from frontend.errors import RequestError
from frontend.observability.families import (
    REQUEST_SECONDS,
    STEP_SECONDS,
    STEP_TOKENS,
    TOKENS,
    Families,
    Histogram,
)
from frontend.observability.load_metrics import expert_families, load_families
from frontend.records import RequestRecord
from switchyard.v1 import inference_pb2 as pb

# vLLM's words for how a request ended.
FINISHED_REASONS = {"EOS": "stop", "STOP": "stop", "LENGTH": "length", "ABORTED": "abort"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a scrape asks.

    Attributes:
        load, experts: `Service.engine_load` and `Service.expert_load`; RequestError while there are
            no workers.
        ready: whether requests are taken.
        denied: calls that came without a valid key.
    """

    load: Callable[[], EngineLoad]
    experts: Callable[[], Awaitable[pb.GetExpertLoadResponse]]
    ready: Callable[[], bool]
    denied: Callable[[], int]


class Metrics(Collector):
    """Watches requests and steps, and shows what it saw.

    Args:
        model: served name, the label of everything.
    """

    def __init__(self, model: str) -> None:
        self._families = Families(model)
        self._sources: Sources | None = None
        self._experts = pb.GetExpertLoadResponse()
        self._asking: asyncio.Task[None] | None = None
        self._ended: Counter[tuple[str, ...]] = Counter()
        self._finished: Counter[str] = Counter()
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._generated_tokens = 0
        self._first_token = Histogram(REQUEST_SECONDS)
        self._whole = Histogram(REQUEST_SECONDS)
        self._queue = Histogram(REQUEST_SECONDS)
        self._prefill = Histogram(REQUEST_SECONDS)
        self._decode = Histogram(REQUEST_SECONDS)
        self._inference = Histogram(REQUEST_SECONDS)
        self._mean_token = Histogram(STEP_SECONDS)
        self._prompt_lengths = Histogram(TOKENS)
        self._answer_lengths = Histogram(TOKENS)
        self._between_tokens = Histogram(STEP_SECONDS)
        self._step_tokens = Histogram(STEP_TOKENS)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def attach(self, sources: Sources) -> None:
        """Say where gauges are read; until then there are none."""
        self._sources = sources

    def step_completed(
        self,
        num_decodes: int,
        seconds_since_previous: float,
        num_tokens: int,
        num_generated: int,
    ) -> None:
        """See `frontend.records.StepObserver`."""
        self._step_tokens.observe(num_tokens)
        self._generated_tokens += num_generated
        if num_decodes and seconds_since_previous > 0.0:
            self._between_tokens.observe(seconds_since_previous, num_decodes)

    def request_ended(self, record: RequestRecord) -> None:
        """See `frontend.records.Observer`; latencies are of requests that got that far."""
        self._ended[record.method, record.code] += 1
        if not record.admitted:
            return
        for reason in record.finish_reasons:
            self._finished[FINISHED_REASONS[reason]] += 1
        if not record.finish_reasons:
            self._finished["abort" if record.code == "CANCELLED" else "error"] += 1
        self._prompt_tokens += record.prompt_tokens
        self._cached_tokens += record.cached_tokens
        self._prompt_lengths.observe(record.prompt_tokens)
        self._answer_lengths.observe(record.completion_tokens)
        self._queue.observe(record.admitted - record.arrived)
        self._whole.observe(record.finished - record.arrived)
        self._inference.observe(record.finished - record.admitted)
        if not record.first_token:
            return
        decode = record.finished - record.first_token
        self._first_token.observe(record.first_token - record.arrived)
        self._prefill.observe(record.first_token - record.admitted)
        self._decode.observe(decode)
        samples = max(len(record.finish_reasons), 1)
        if record.completion_tokens > samples:
            self._mean_token.observe(decode * samples / (record.completion_tokens - samples))

    def render(self) -> tuple[bytes, str]:
        """A page in Prometheus' text format and its content type. To be called in the event loop.

        The experts' counts are those of the scrape before: asking for them takes longer than this.
        """
        if self._sources is not None and (self._asking is None or self._asking.done()):
            self._asking = asyncio.get_running_loop().create_task(self._ask(self._sources))
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    async def _ask(self, sources: Sources) -> None:
        with contextlib.suppress(RequestError):  # the workers are away: what was known stays
            self._experts = await sources.experts()

    def describe(self) -> Iterable[Metric]:
        """Nothing at registration: names are known only from a scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families, as prometheus_client asks for them."""
        yield self._families.counter(
            "vllm:prompt_tokens", "Of requests that ended.", self._prompt_tokens
        )
        yield self._families.counter(
            "vllm:prompt_tokens_cached", "Of these, found in the prefix cache.", self._cached_tokens
        )
        yield self._families.counter(
            "vllm:generation_tokens", "Added to outputs, step by step.", self._generated_tokens
        )
        yield self._families.counters(
            "vllm:request_success",
            "Sequences by how they ended.",
            ("finished_reason",),
            {(reason,): count for reason, count in self._finished.items()},
        )
        yield self._families.counters(
            "switchyard:requests", "Requests by how they ended.", ("method", "code"), self._ended
        )
        yield from self._histograms()
        yield from expert_families(self._families, self._experts)
        if self._sources is not None:
            yield self._families.gauge(
                "switchyard:ready", "1 while requests are taken.", self._sources.ready()
            )
            yield self._families.gauge(
                "switchyard:tasks", "Of the frontend's event loop.", len(asyncio.all_tasks())
            )
            yield self._families.counter(
                "switchyard:unauthenticated", "Calls without a valid key.", self._sources.denied()
            )
            with contextlib.suppress(RequestError):  # nothing is there to be loaded yet
                yield from load_families(self._families, self._sources.load())

    def _histograms(self) -> Iterator[Metric]:
        for name, meaning, seen in (
            ("time_to_first_token_seconds", "Arrival to first token.", self._first_token),
            ("inter_token_latency_seconds", "Token to token, of each.", self._between_tokens),
            ("request_time_per_output_token_seconds", "Mean of a request.", self._mean_token),
            ("e2e_request_latency_seconds", "Arrival to end.", self._whole),
            ("request_queue_time_seconds", "Arrival to admission.", self._queue),
            ("request_inference_time_seconds", "Admission to end.", self._inference),
            ("request_prefill_time_seconds", "Admission to first token.", self._prefill),
            ("request_decode_time_seconds", "First token to end.", self._decode),
            ("request_prompt_tokens", "Of a prompt.", self._prompt_lengths),
            ("request_generation_tokens", "Of an answer.", self._answer_lengths),
            ("iteration_tokens_total", "Of a step.", self._step_tokens),
        ):
            yield self._families.histogram(f"vllm:{name}", meaning, seen)
