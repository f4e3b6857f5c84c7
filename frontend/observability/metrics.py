"""Prometheus metrics: vLLM's names where the meaning is the same, ours for the rest.

Owns every name and what is counted for it; docs/observability.md lists them. A scrape reads the
gauges from their sources. Knows no transport: `render` returns a page's bytes.
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
from frontend.observability.load_gauges import cache_family, expert_families, load_families
from frontend.observability.metric_families import (
    REQUEST_SECONDS,
    STEP_SECONDS,
    STEP_TOKENS,
    TOKENS,
    Families,
    Histogram,
)
from frontend.records import RequestRecord
from switchyard.v1 import inference_pb2 as pb

# vLLM's words for how a request ended.
FINISHED_REASONS = {"EOS": "stop", "STOP": "stop", "LENGTH": "length", "ABORTED": "abort"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a scrape reads.

    Attributes:
        load, experts, server: `Service.engine_load`, `expert_load` and `server_info`; RequestError
            while there are no workers.
        ready: whether requests are taken.
        denied: calls that came without a valid key.
    """

    load: Callable[[], EngineLoad]
    experts: Callable[[], Awaitable[pb.GetExpertLoadResponse]]
    server: Callable[[], pb.GetServerInfoResponse]
    ready: Callable[[], bool]
    denied: Callable[[], int]


class Metrics(Collector):
    """Observes requests and steps, and renders metrics of them.

    Args:
        model: served name, the label of every series.
    """

    def __init__(self, model: str) -> None:
        self._families = Families(model)
        self._sources: Sources | None = None
        self._experts = pb.GetExpertLoadResponse()
        self._fetching: asyncio.Task[None] | None = None
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
        """Set the sources of the gauges; without them there are none."""
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
        num_drawn = record.completion_tokens - record.resumed_tokens
        if num_drawn > samples:
            self._mean_token.observe(decode * samples / (num_drawn - samples))

    def render(self) -> tuple[bytes, str]:
        """A page in Prometheus' text format and its content type. To be called in the event loop.

        The experts' counts are those of the scrape before, as fetching them takes longer than this.
        """
        if self._sources is not None and (self._fetching is None or self._fetching.done()):
            self._fetching = asyncio.get_running_loop().create_task(
                self._fetch_experts(self._sources)
            )
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    async def _fetch_experts(self, sources: Sources) -> None:
        with contextlib.suppress(RequestError):  # the workers are away; keep the last counts
            self._experts = await sources.experts()

    def describe(self) -> Iterable[Metric]:
        """Nothing at registration: only a scrape knows the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families, for prometheus_client."""
        yield self._families.counter(
            "vllm:prompt_tokens",
            "Prompt tokens of finished requests, cached ones included.",
            self._prompt_tokens,
        )
        yield self._families.counter(
            "vllm:prompt_tokens_cached",
            "Prompt tokens of finished requests that were found in the prefix cache.",
            self._cached_tokens,
        )
        yield self._families.counter(
            "vllm:generation_tokens",
            "Tokens that were added to outputs, counted step by step.",
            self._generated_tokens,
        )
        yield self._families.counters(
            "vllm:request_success",
            "Finished sequences by the reason of their end.",
            ("finished_reason",),
            {(reason,): count for reason, count in self._finished.items()},
        )
        yield self._families.counters(
            "switchyard:requests",
            "Requests that are over, by method and status code.",
            ("method", "code"),
            self._ended,
        )
        yield from self._histograms()
        yield from expert_families(self._families, self._experts)
        if self._sources is not None:
            yield self._families.gauge(
                "switchyard:ready",
                "1 while new requests are accepted, else 0.",
                self._sources.ready(),
            )
            yield self._families.gauge(
                "switchyard:tasks", "Tasks of the frontend's event loop.", len(asyncio.all_tasks())
            )
            yield self._families.counter(
                "switchyard:unauthenticated",
                "Calls that came without a valid API key.",
                self._sources.denied(),
            )
            with contextlib.suppress(RequestError):  # there is no engine yet
                yield from load_families(self._families, self._sources.load())
                yield cache_family(self._families, self._sources.server())

    def _histograms(self) -> Iterator[Metric]:
        for name, meaning, seen in (
            (
                "time_to_first_token_seconds",
                "Seconds from a request's arrival to its first token.",
                self._first_token,
            ),
            (
                "inter_token_latency_seconds",
                "Seconds from one token of a sequence to the next.",
                self._between_tokens,
            ),
            (
                "request_time_per_output_token_seconds",
                "Mean seconds between the tokens of a request.",
                self._mean_token,
            ),
            (
                "e2e_request_latency_seconds",
                "Seconds from a request's arrival to its end.",
                self._whole,
            ),
            (
                "request_queue_time_seconds",
                "Seconds from a request's arrival to its admission.",
                self._queue,
            ),
            (
                "request_inference_time_seconds",
                "Seconds from a request's admission to its end.",
                self._inference,
            ),
            (
                "request_prefill_time_seconds",
                "Seconds from a request's admission to its first token.",
                self._prefill,
            ),
            (
                "request_decode_time_seconds",
                "Seconds from a request's first token to its end.",
                self._decode,
            ),
            ("request_prompt_tokens", "Tokens of a request's prompt.", self._prompt_lengths),
            (
                "request_generation_tokens",
                "Tokens of a request's output, over all of its samples.",
                self._answer_lengths,
            ),
            ("iteration_tokens_total", "Tokens of a step, decodes and prompts.", self._step_tokens),
        ):
            yield self._families.histogram(f"vllm:{name}", meaning, seen)
