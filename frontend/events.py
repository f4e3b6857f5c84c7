"""Protobuf messages of a stream, made from a request and its output.

Owns the turn from `frontend.request` to `switchyard.v1`. Knows nothing of when they are sent.
"""

from __future__ import annotations

import time

from google.protobuf import duration_pb2, timestamp_pb2

from frontend.request import Delta, Request
from switchyard.v1 import inference_pb2 as pb


def started(request: Request, model: str) -> pb.GenerateResponse:
    """First message of a stream."""
    return pb.GenerateResponse(
        started=pb.GenerateStarted(
            request_id=request.id,
            model=model,
            created=now(),
            prompt_tokens=len(request.prompt_ids),
            seed=request.sampling.seed,
        )
    )


def echoed(text: str) -> pb.GenerateResponse:
    """The prompt's text, sent back before any output."""
    return pb.GenerateResponse(delta=pb.Delta(text=text))


def delta(output: Delta) -> pb.GenerateResponse:
    """What one take from the output gave."""
    message = pb.Delta(text=output.text, token_ids=output.token_ids)
    if output.finish_reason is not None:
        message.finish_reason = pb.FinishReason.Name(output.finish_reason.value)  # type: ignore
    if output.stop_text is not None:
        message.stop_text = output.stop_text
    elif output.stop_token_id is not None:
        message.stop_token_id = output.stop_token_id
    return pb.GenerateResponse(delta=message)


def finished(request: Request) -> pb.GenerateResponse:
    """Last message of a stream that ended well."""
    end = request.finished or time.monotonic()
    admitted = request.admitted or end
    first_token = request.first_token or end
    return pb.GenerateResponse(
        finished=pb.GenerateFinished(
            usage=pb.Usage(
                prompt_tokens=len(request.prompt_ids),
                cached_prompt_tokens=request.cached_tokens,
                completion_tokens=request.num_generated,
            ),
            timings=pb.Timings(
                queued=_duration(admitted - request.arrived),
                prefill=_duration(first_token - admitted),
                decode=_duration(end - first_token),
                preemptions=request.preemptions,
            ),
        )
    )


def now() -> timestamp_pb2.Timestamp:
    """The wall clock's time."""
    stamp = timestamp_pb2.Timestamp()
    stamp.GetCurrentTime()
    return stamp


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(max(0, round(seconds * 1e9)))
    return duration
