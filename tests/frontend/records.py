"""Records of requests, for tests of observers."""

from __future__ import annotations

from typing import Any

from frontend.records import Caller, RequestRecord

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
CALLER = Caller(key="alice", peer="ipv4:192.0.2.1:5", traceparent=f"00-{TRACE_ID}-{SPAN_ID}-01")


def record(**changes: Any) -> RequestRecord:
    """A request of 12 prompt tokens, 5 of them cached, and 9 new ones; 8 s in all."""
    facts: dict[str, Any] = {
        "request_id": "r-1", "method": "Chat", "caller": CALLER, "code": "OK",
        "finish_reasons": ("STOP",), "prompt_tokens": 12, "cached_tokens": 5,
        "completion_tokens": 9, "arrived": 100.0, "admitted": 101.0, "first_token": 103.0,
        "finished": 108.0, "preemptions": 2, "replays": 1,
    }  # fmt: skip
    return RequestRecord(**(facts | changes))


def refusal(**changes: Any) -> RequestRecord:
    """A request that was refused."""
    facts: dict[str, Any] = {
        "code": "RESOURCE_EXHAUSTED", "reason": "QUEUE_FULL", "finish_reasons": (),
        "cached_tokens": 0, "completion_tokens": 0, "admitted": 0.0, "first_token": 0.0,
        "finished": 100.001, "preemptions": 0, "replays": 0,
    }  # fmt: skip
    return record(**(facts | changes))
