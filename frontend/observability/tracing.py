"""OpenTelemetry traces: a span for each request, with queue, prefill and decode inside.

Owns the spans' names, times and attributes, by OpenTelemetry's conventions for generative AI, and
their export. Needs the ``traces`` extra; `setup.py` imports it only for --otlp-endpoint.
"""

from __future__ import annotations

import logging
import time
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from frontend.observability.record_queue import RecordQueue
from frontend.records import RequestRecord

# gen_ai.operation.name; every method that is no chat continues text.
CHAT = "chat"
COMPLETION = "text_completion"
# One attempt to send, with its retries; an absent collector delays a stop by this.
EXPORT_SECONDS = 2.0
CLOSE_SECONDS = 1.0
DEFAULT_PATH = "/v1/traces"


class Traces:
    """Observes requests; threads make and send the spans of one that is over.

    Args:
        model: served name.
        version: this release.
        exporter: sends the spans.
    """

    def __init__(self, *, model: str, version: str, exporter: SpanExporter) -> None:
        resource = Resource.create({"service.name": "switchyard", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("switchyard", version)
        self._propagator = TraceContextTextMapPropagator()
        self._model = model
        # Making a request's spans costs as much as several of its messages, so not in the loop;
        # BatchSpanProcessor's own queue holds spans that are made.
        self._queue = RecordQueue(_Tracing(self))

    def request_ended(self, record: RequestRecord) -> None:
        """See `frontend.records.Observer`."""
        self._queue.put(record)

    def close(self) -> None:
        """Send what waits, for seconds at most."""
        self._queue.close(CLOSE_SECONDS)
        self._provider.shutdown()

    def trace(self, record: RequestRecord) -> None:
        """Make the spans of a request."""
        # Records hold the monotonic clock, spans the wall's.
        offset = time.time() - time.monotonic()
        operation = CHAT if "chat" in record.method.lower() else COMPLETION
        carrier = {"traceparent": record.caller.traceparent} if record.caller.traceparent else {}
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=self._attributes(record, operation),
            start_time=_nanoseconds(record.arrived + offset),
        )
        inside = trace.set_span_in_context(span)
        for name, start, end in _parts(record):
            part = self._tracer.start_span(
                name, context=inside, start_time=_nanoseconds(start + offset)
            )
            part.end(_nanoseconds(end + offset))
        if record.code not in ("OK", "CANCELLED"):
            span.set_status(Status(StatusCode.ERROR, record.reason))
        span.end(_nanoseconds(record.finished + offset))

    def _attributes(self, record: RequestRecord, operation: str) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "switchyard",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": record.request_id,
            "gen_ai.response.finish_reasons": [each.lower() for each in record.finish_reasons],
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
            "switchyard.method": record.method,
            "switchyard.code": record.code,
            "switchyard.key": record.caller.key,
            "switchyard.resumed_tokens": record.resumed_tokens,
            "switchyard.preemptions": record.preemptions,
            "switchyard.replays": record.replays,
            "network.peer.address": record.caller.peer,
        }
        if record.code != "OK":
            attributes["error.type"] = record.reason or record.code
        return attributes


class _Tracing(logging.Handler):
    """Makes the spans of each record."""

    def __init__(self, traces: Traces) -> None:
        super().__init__()
        self._traces = traces

    def emit(self, record: logging.LogRecord) -> None:
        """Make the spans of the log record's request."""
        self._traces.trace(vars(record)["request"])


def open_traces(endpoint: str, *, model: str, version: str) -> Traces:
    """Traces that go to a collector by OTLP over HTTP.

    Args:
        endpoint: http or https URL; without a path, the usual one of traces.

    Raises:
        ValueError: it is no such URL.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"--otlp-endpoint {endpoint} is no URL; pass one such as http://collector:4318"
        )
    if parts.path in ("", "/"):
        endpoint = parts._replace(path=DEFAULT_PATH).geturl()
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
    return Traces(model=model, version=version, exporter=exporter)


def _parts(record: RequestRecord) -> list[tuple[str, float, float]]:
    """Name, start and end of each part that was entered; the last one ends with the request."""
    entered = [
        ("queue", record.arrived),
        ("prefill", record.admitted),
        ("decode", record.first_token),
    ]
    entered = [(name, start) for name, start in entered if start]
    ends = [start for _, start in entered[1:]] + [record.finished]
    return [(name, start, end) for (name, start), end in zip(entered, ends, strict=True)]


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
