"""A line for each request that is over, as JSON or for people; never a word of what was said.

Owns the line's fields, and that writing delays no request: records wait in a `RecordQueue`, and the
next line says how many were dropped. Knows nothing of how a request is served.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import time
from typing import Any

from frontend.observability.record_queue import MAX_WAITING, RecordQueue
from frontend.records import RequestRecord

STDERR = 2


class RequestLog:
    """Observes requests; `close` writes what waits.

    Args:
        descriptor: of the open file that lines are written to.
        max_waiting: lines that may wait.
        as_text: lines are for a person, not for a program.
    """

    def __init__(
        self,
        descriptor: int = STDERR,
        max_waiting: int = MAX_WAITING,
        *,
        as_text: bool = False,
    ) -> None:
        writer = _LineWriter(descriptor)
        writer.setFormatter(_TextFormatter() if as_text else _JsonFormatter())
        self._queue = RecordQueue(writer, max_waiting)

    def request_ended(self, record: RequestRecord) -> None:
        """See `frontend.records.Observer`."""
        self._queue.put(record)

    def close(self, seconds: float = 1.0) -> bool:
        """Write what waits; False when its reader takes longer than ``seconds``."""
        return self._queue.close(seconds)


class _JsonFormatter(logging.Formatter):
    """Formats the request of a log record as a JSON object in one line."""

    def __init__(self) -> None:
        super().__init__()
        # The wall clock's time when the monotonic one, which records hold, shows 0.
        self._epoch = time.time() - time.monotonic()

    def format(self, record: logging.LogRecord) -> str:
        """The object; ``dropped_lines`` is only there when lines were lost since the last one."""
        values = vars(record)
        fields = fields_of(values["request"], self._epoch)
        if values["dropped_lines"]:
            fields["dropped_lines"] = values["dropped_lines"]
        return json.dumps(fields)


class _TextFormatter(logging.Formatter):
    """Formats the request of a log record as a short line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, in the machine's own time."""
        values = vars(record)
        line = f"{time.strftime('%H:%M:%S')} {text_of(values['request'])}"
        lost = values["dropped_lines"]
        return f"{line} ({lost} lines before this one were lost)" if lost else line


class _LineWriter(logging.Handler):
    """Writes lines to a file descriptor.

    Not to sys.stderr, whose lock a stuck write would hold.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._num_reported = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a reader that is gone ends nothing."""
        num_dropped = vars(record)["num_dropped"]
        record.dropped_lines = num_dropped - self._num_reported
        line = self.format(record).encode() + b"\n"
        with contextlib.suppress(OSError):
            while line:
                line = line[self._write(line) :]
            self._num_reported = num_dropped

    def _write(self, line: bytes) -> int:
        """Write what can be written, after waiting until something can."""
        while True:
            try:
                return os.write(self._descriptor, line)
            except BlockingIOError:
                writable = select.poll()
                writable.register(self._descriptor, select.POLLOUT)
                writable.poll()


def fields_of(record: RequestRecord, epoch: float) -> dict[str, Any]:
    """The fields of a line; times that never came are null.

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
        "resumed_tokens": record.resumed_tokens,
        "queue_ms": _milliseconds(record.arrived, record.admitted),
        "ttft_ms": _milliseconds(record.arrived, record.first_token),
        "e2e_ms": _milliseconds(record.arrived, record.finished),
        "preemptions": record.preemptions,
        "replays": record.replays,
    }


def text_of(record: RequestRecord) -> str:
    """What a person wants to know: what was asked, what came of it, tokens and seconds."""
    words = [record.method, record.code, record.reason, ",".join(record.finish_reasons)]
    parts = [" ".join(filter(None, words))]
    if record.prompt_tokens:
        cached = f" ({record.cached_tokens} cached)" if record.cached_tokens else ""
        parts.append(f"{record.prompt_tokens} + {record.completion_tokens} tokens{cached}")
    if record.first_token:
        parts.append(f"first after {record.first_token - record.arrived:.3f} s")
    parts.append(f"{record.finished - record.arrived:.3f} s")
    if record.replays:
        parts.append(f"replays: {record.replays}")
    if record.caller.key:
        parts.append(record.caller.key)
    return ", ".join(parts)


def _milliseconds(start: float, end: float) -> float | None:
    return round((end - start) * 1e3, 3) if end else None


def _utc(seconds: float) -> str:
    """ISO 8601 with milliseconds."""
    whole, milliseconds = divmod(round(seconds * 1e3), 1000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{stamp}.{milliseconds:03d}Z"
