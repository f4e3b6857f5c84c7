"""Makes the messages of a stream from a call's samples and their output.

Owns the conversion from `frontend.requests` to `switchyard.v1`, and from a stream to one answer.
Knows nothing of when messages are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2

from frontend.bounds import (
    MAX_CHARS_PER_TOKEN,
    MAX_LOGPROBS_PER_MESSAGE,
    MAX_TOKENS_PER_MESSAGE,
)
from frontend.requests.output import Delta, TokenLogprobs
from frontend.requests.request import Request
from switchyard.v1 import inference_pb2 as pb

_MAX_CHARS = MAX_TOKENS_PER_MESSAGE * MAX_CHARS_PER_TOKEN


async def started(
    request_id: str, samples: Sequence[Request], model: str, output: pb.OutputOptions
) -> pb.GenerateResponse:
    """First message of a stream, made from the first sample. Other tasks run meanwhile."""
    first = samples[0]
    message = pb.GenerateStarted(
        request_id=request_id,
        model=model,
        created=now(),
        prompt_tokens=len(first.prompt_ids),
        cached_prompt_tokens=first.cached_tokens,
        seed=first.sampling.seed,
        generated_tokens=sum(len(sample.generated) for sample in samples),
    )
    if output.prompt_logprobs:
        message.prompt_token_ids.extend(first.prompt_ids)
        top, size = message.prompt_top_logprobs, logprobs_at_once(output)
        for start in range(0, len(first.prompt_logprobs), size):
            _add_logprobs(
                first.prompt_logprobs[start : start + size],
                message.prompt_logprobs,
                top if output.top_logprobs else None,
            )
            await asyncio.sleep(0)
    return pb.GenerateResponse(started=message)


def logprobs_at_once(output: pb.OutputOptions) -> int:
    """Tokens whose log-probabilities are handled before other tasks of the loop run."""
    return max(1, MAX_LOGPROBS_PER_MESSAGE // (1 + output.top_logprobs))


def echoed(num_samples: int, text: str) -> Iterator[pb.GenerateResponse]:
    """The prompt's text, once for each sample; it comes before any output."""
    for index in range(num_samples):
        for piece in _pieces(Delta(text=text), MAX_TOKENS_PER_MESSAGE):
            yield pb.GenerateResponse(delta=pb.Delta(index=index, text=piece.text))


def deltas(index: int, new: Delta, output: pb.OutputOptions) -> Iterator[pb.GenerateResponse]:
    """Messages of new output of a sample: one, or more where a slow reader let much pile up."""
    max_tokens = logprobs_at_once(output) if output.logprobs else MAX_TOKENS_PER_MESSAGE
    return (_delta(index, piece, output) for piece in _pieces(new, max_tokens))


def _pieces(new: Delta, max_tokens: int) -> Iterator[Delta]:
    """Splits a delta into those that fit messages; the last one has the finish reason."""
    num_before = len(new.reasoning)  # characters before the text
    num_chars = num_before + len(new.text)
    num_pieces = max(1, -(-len(new.token_ids) // max_tokens), -(-num_chars // _MAX_CHARS))
    for number in range(num_pieces):
        tokens = slice(number * max_tokens, (number + 1) * max_tokens)
        start, end = number * _MAX_CHARS, (number + 1) * _MAX_CHARS
        piece = Delta(
            reasoning=new.reasoning[start:end],
            text=new.text[max(0, start - num_before) : max(0, end - num_before)],
            token_ids=new.token_ids[tokens],
            logprobs=new.logprobs[tokens],
        )
        if number == num_pieces - 1:
            piece.finish_reason = new.finish_reason
            piece.stop_text, piece.stop_token_id = new.stop_text, new.stop_token_id
        yield piece


def _delta(index: int, new: Delta, output: pb.OutputOptions) -> pb.GenerateResponse:
    message = pb.Delta(index=index, reasoning=new.reasoning, text=new.text, token_ids=new.token_ids)
    if output.logprobs:
        _add_logprobs(
            new.logprobs, message.logprobs, message.top_logprobs if output.top_logprobs else None
        )
    if new.finish_reason is not None:
        message.finish_reason = pb.FinishReason.Name(new.finish_reason.value)  # type: ignore
    if new.stop_text is not None:
        message.stop_text = new.stop_text
    elif new.stop_token_id is not None:
        message.stop_token_id = new.stop_token_id
    return pb.GenerateResponse(delta=message)


def _add_logprobs(tokens: Sequence[TokenLogprobs], values: Any, alternatives: Any | None) -> None:
    """Fills the repeated fields of a message; ``alternatives`` is None where none are wanted."""
    values.extend(token.logprob for token in tokens)
    if alternatives is not None:
        for token in tokens:
            alternatives.add(token_ids=token.top_ids, logprobs=token.top_logprobs)


def finished(first: Request, samples: Sequence[Request]) -> pb.GenerateResponse:
    """Last message of a stream that ended well. The prompt counts once for all samples.

    Args:
        first: the sample whose prompt was computed first.
    """
    end = max(sample.finished for sample in samples) or time.monotonic()
    admitted = first.admitted or end
    first_token = first.first_token or end
    return pb.GenerateResponse(
        finished=pb.GenerateFinished(
            usage=pb.Usage(
                prompt_tokens=len(first.prompt_ids),
                cached_prompt_tokens=first.cached_tokens,
                completion_tokens=sum(sample.num_generated for sample in samples),
                reasoning_tokens=sum(sample.num_thought_tokens for sample in samples),
            ),
            timings=pb.Timings(
                queued=_duration(admitted - first.arrived),
                prefill=_duration(first_token - admitted),
                decode=_duration(end - first_token),
                preemptions=sum(sample.preemptions for sample in samples),
                replays=max(sample.replays for sample in samples),
            ),
        )
    )


async def gathered(stream: AsyncGenerator[pb.GenerateResponse, None]) -> pb.CompleteResponse:
    """A whole stream as one answer, with an output a sample."""
    answer = pb.CompleteResponse()
    outputs: dict[int, pb.Delta] = {}
    async with contextlib.aclosing(stream):
        async for event in stream:
            if event.HasField("started"):
                answer.started.CopyFrom(event.started)
            elif event.HasField("delta"):
                output = outputs.setdefault(event.delta.index, pb.Delta())
                texts = output.reasoning + event.delta.reasoning, output.text + event.delta.text
                output.MergeFrom(event.delta)
                output.reasoning, output.text = texts
            else:
                answer.finished.CopyFrom(event.finished)
    answer.outputs.extend(outputs[index] for index in sorted(outputs))
    return answer


def now() -> timestamp_pb2.Timestamp:
    """The wall clock's time."""
    stamp = timestamp_pb2.Timestamp()
    stamp.GetCurrentTime()
    return stamp


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(max(0, round(seconds * 1e9)))
    return duration
