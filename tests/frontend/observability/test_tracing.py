"""Traces as a collector receives them: OTLP over HTTP to a server in this process."""

from __future__ import annotations

import builtins
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from frontend.config import FrontendConfig
from frontend.observability.setup import Observability
from frontend.observability.tracing import Traces, open_traces
from tests.frontend.records import CALLER, SPAN_ID, TRACE_ID, record, refusal


class Collector(ThreadingHTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: list[str] = []
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def spans(self) -> dict[str, Span]:
        scopes = [s for r in self.requests for each in r.resource_spans for s in each.scope_spans]
        return {span.name: span for scope in scopes for span in scope.spans}


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.paths.append(self.path)
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def exported(collector: Collector, *records: Any) -> dict[str, Span]:
    traces = open_traces(collector.url, model="demo", version="1.2.3")
    for each in records:
        traces.request_ended(each)
    traces.close()
    return collector.spans


def values(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


def seconds(span: Span) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def test_a_request_is_a_span_of_its_callers_trace_with_its_parts_inside(
    collector: Collector,
) -> None:
    spans = exported(collector, record())
    assert collector.paths == ["/v1/traces"]
    assert spans.keys() == {"chat demo", "queue", "prefill", "decode"}
    whole = spans["chat demo"]
    assert whole.trace_id.hex() == TRACE_ID
    assert whole.parent_span_id.hex() == SPAN_ID
    assert whole.kind == Span.SPAN_KIND_SERVER
    for name, length in (("chat demo", 8), ("queue", 1), ("prefill", 2), ("decode", 5)):
        assert seconds(spans[name]) == pytest.approx(length, abs=1e-6), name
    for name in ("queue", "prefill", "decode"):
        assert spans[name].trace_id == whole.trace_id
        assert spans[name].parent_span_id == whole.span_id
    assert spans["queue"].start_time_unix_nano == whole.start_time_unix_nano
    assert spans["queue"].end_time_unix_nano == spans["prefill"].start_time_unix_nano
    assert spans["decode"].end_time_unix_nano == whole.end_time_unix_nano


def test_times_are_the_wall_clocks(collector: Collector) -> None:
    now = time.monotonic()
    spans = exported(
        collector, record(arrived=now - 2, admitted=now - 1, first_token=now - 0.5, finished=now)
    )
    assert abs(spans["chat demo"].end_time_unix_nano / 1e9 - time.time()) < 5


def test_attributes_are_those_of_generative_ai(collector: Collector) -> None:
    span = exported(collector, record(method="Generate"))["text_completion demo"]
    found = values(span)
    assert found["gen_ai.operation.name"] == "text_completion"
    assert found["gen_ai.request.model"] == "demo"
    assert found["gen_ai.response.id"] == "r-1"
    assert found["gen_ai.response.finish_reasons"] == ["stop"]
    assert found["gen_ai.usage.input_tokens"] == 12
    assert found["gen_ai.usage.output_tokens"] == 9
    assert found["gen_ai.usage.cache_read.input_tokens"] == 5
    assert (found["switchyard.preemptions"], found["switchyard.replays"]) == (2, 1)
    assert (found["switchyard.key"], found["network.peer.address"]) == ("alice", CALLER.peer)
    assert "error.type" not in found
    [resource] = collector.requests[0].resource_spans
    facts = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert (facts["service.name"], facts["service.version"]) == ("switchyard", "1.2.3")


def test_a_refusal_is_an_error_with_no_parts_after_the_queue(collector: Collector) -> None:
    spans = exported(collector, refusal())
    assert spans.keys() == {"chat demo", "queue"}
    assert spans["chat demo"].status.code == Status.STATUS_CODE_ERROR
    assert values(spans["chat demo"])["error.type"] == "QUEUE_FULL"


@pytest.mark.parametrize("header", ["", "nonsense", "00-0-0-00"])
def test_without_a_parent_a_trace_begins_here(collector: Collector, header: str) -> None:
    caller = type(CALLER)(key="", peer="", traceparent=header)
    span = exported(collector, record(caller=caller))["chat demo"]
    assert not span.parent_span_id
    assert span.trace_id.hex() not in ("", TRACE_ID)


def test_a_parent_that_is_not_sampled_is_left_alone(collector: Collector) -> None:
    caller = type(CALLER)(key="", peer="", traceparent=f"00-{TRACE_ID}-{SPAN_ID}-00")
    assert not exported(collector, record(caller=caller))


def test_an_endpoint_with_a_path_is_taken_as_it_is(collector: Collector) -> None:
    traces = open_traces(f"{collector.url}/custom/path", model="demo", version="0")
    traces.request_ended(record())
    traces.close()
    assert collector.paths == ["/custom/path"]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_collector_that_is_not_there_stops_nobody() -> None:
    """Neither does the caller wait for it, whose CPU time alone counts, nor the end for ever."""
    traces = open_traces("http://127.0.0.1:1", model="demo", version="0")
    start = time.thread_time()
    traces.request_ended(record())
    assert time.thread_time() - start < 0.1
    traces.close()


def config(**changes: Any) -> FrontendConfig:
    facts: dict[str, Any] = {"model": Path(), "served_name": "demo", "workers": ("a:1",)}
    return FrontendConfig(**(facts | {"request_log": False} | changes))


def test_flags_choose_who_watches(collector: Collector) -> None:
    quiet = Observability(config(), version="0")
    assert quiet.observers == (quiet.metrics,)
    quiet.close()
    full = Observability(config(otlp_endpoint=collector.url, request_log=True), version="0")
    assert {type(each).__name__ for each in full.observers} == {"Metrics", "Traces", "RequestLog"}
    assert isinstance(full.observers[1], Traces)
    assert full.step_observers == (full.metrics,)
    full.close()


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://a", "http://"])
def test_an_endpoint_that_is_no_url_is_one_line(endpoint: str) -> None:
    with pytest.raises(ValueError, match=f"--otlp-endpoint {endpoint} is no URL"):
        Observability(config(otlp_endpoint=endpoint), version="0")


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "frontend.observability.tracing":
            raise ImportError("No module named 'opentelemetry'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError) as caught:
        Observability(config(otlp_endpoint="http://a:1"), version="0")
    assert "pip install 'switchyard[traces]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_handing_over_a_record_is_cheap(collector: Collector) -> None:
    traces = open_traces(collector.url, model="demo", version="0")
    one = record()
    best = float("inf")
    for _ in range(5):
        start = time.thread_time()
        for _ in range(50):
            traces.request_ended(one)
        best = min(best, (time.thread_time() - start) / 50)
    traces.close()
    assert best < 100e-6
