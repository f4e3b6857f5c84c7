"""A line of JSON for each request that is over; never a word of a prompt or an answer.

Owns the line's fields, and that writing it stops nobody: records wait in a `Backlog`, and how many
found no place there is told in the next line. Knows nothing of how a request is served.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any

from frontend.observability.backlog import MAX_WAITING, Backlog
from frontend.records import RequestRecord

STDERR = 2


class RequestLog:
    """Watches requests; `close` writes what waits.

    Args:
        descriptor: of the open file that lines are written to.
        most: lines that may wait.
    """

    def __init__(self, descriptor: int = STDERR, most: int = MAX_WAITING) -> None:
        self._descriptor = descriptor
        self._told = 0
        # What the wall's clock shows when the monotonic one, which records hold, shows 0.
        self._epoch = time.time() - time.monotonic()
        self._backlog = Backlog("request-log", self._write, most)

    def request_ended(self, record: RequestRecord) -> None:
        """See `frontend.records.Observer`."""
        self._backlog.put(record)

    def close(self, seconds: float = 1.0) -> bool:
        """Write what waits; false when its reader takes longer than ``seconds``."""
        return self._backlog.close(seconds)

    def _write(self, record: RequestRecord) -> None:
        fields = fields_of(record, self._epoch)
        dropped = self._backlog.dropped
        if dropped != self._told:
            fields["dropped_lines"] = dropped - self._told
        line = json.dumps(fields).encode() + b"\n"
        with contextlib.suppress(OSError):  # the reader is gone; serving goes on
            # Not through sys.stderr, whose lock a stuck write would hold.
            while line:
                line = line[os.write(self._descriptor, line) :]
            self._told = dropped


def fields_of(record: RequestRecord, epoch: float) -> dict[str, Any]:
    """What a line says; times that never came are null.

    Args:
        epoch: time.time() when time.monotonic() was 0.
    """
    reasons = record.finish_reasons
    return {
        "time": _utc(record.finished + epoch),
        "request_id": record.request_id,
        "key": record.caller.key,
        "peer": record.caller.peer,
        "method": record.method,
        "code": record.code,
        "reason": record.reason,
        "finish": ",".join(reasons),
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "queue_ms": _milliseconds(record.arrived, record.admitted),
        "ttft_ms": _milliseconds(record.arrived, record.first_token),
        "e2e_ms": _milliseconds(record.arrived, record.finished),
        "preemptions": record.preemptions,
        "replays": record.replays,
    }


def _milliseconds(start: float, end: float) -> float | None:
    return round((end - start) * 1e3, 3) if end else None


def _utc(seconds: float) -> str:
    """ISO 8601 with milliseconds."""
    whole, milliseconds = divmod(round(seconds * 1e3), 1000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{stamp}.{milliseconds:03d}Z"
