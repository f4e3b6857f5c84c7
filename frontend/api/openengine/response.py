"""Converts `switchyard.v1` events to the answers of `openengine.v1`, and errors to its own.

Owns their shape and order: the last message of a stream, which ends the last sample, has the usage.
Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from frontend.errors import Code, RequestError
from switchyard.openengine.v1 import openengine_pb2 as oe
from switchyard.v1 import inference_pb2 as pb

_FINISH_REASONS = {
    pb.FINISH_REASON_EOS: oe.FINISH_REASON_STOP,
    pb.FINISH_REASON_STOP: oe.FINISH_REASON_STOP,
    pb.FINISH_REASON_LENGTH: oe.FINISH_REASON_LENGTH,
    pb.FINISH_REASON_ABORTED: oe.FINISH_REASON_CANCELLED,
}
# Of what can happen after a request was accepted; anything else is INTERNAL.
_ERROR_CODES = {
    Code.INVALID_ARGUMENT: oe.ERROR_CODE_INVALID_ARGUMENT,
    Code.RESOURCE_EXHAUSTED: oe.ERROR_CODE_OVERLOADED,
    Code.DEADLINE_EXCEEDED: oe.ERROR_CODE_OVERLOADED,
}
_RETRYABLE = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED}


class Answer:
    """The messages of one request."""

    def __init__(self) -> None:
        self._request_id = ""
        self._end: oe.GenerateResponse | None = None

    def add(self, event: pb.GenerateResponse) -> Iterator[oe.GenerateResponse]:
        """The messages that an event becomes."""
        match event.WhichOneof("event"):
            case "started":
                self._request_id = event.started.request_id
                if event.started.prompt_logprobs:
                    yield self._message(prompt=_prompt_output(event.started))
            case "delta":
                yield from self._delta(event.delta)
            case "finished":
                assert self._end is not None, "a stream ends after its samples"
                self._end.usage.CopyFrom(_usage(event.finished.usage))
                yield self._end

    def error(self, error: RequestError) -> oe.GenerateResponse:
        """The last message of a stream that an error ends."""
        return self._message(error=engine_error(error))

    def _delta(self, delta: pb.Delta) -> Iterator[oe.GenerateResponse]:
        if delta.token_ids or delta.text:
            tokens = _tokens(delta.token_ids, delta.logprobs, delta.top_logprobs)
            token = oe.TokenOutput(output_index=delta.index, tokens=tokens, text=delta.text)
            yield self._message(token=token)
        if delta.finish_reason:
            if self._end is not None:
                yield self._end
            self._end = self._message(finished=_finished(delta))

    def _message(
        self,
        *,
        prompt: oe.PromptOutput | None = None,
        token: oe.TokenOutput | None = None,
        finished: oe.GenerationFinished | None = None,
        error: oe.EngineError | None = None,
    ) -> oe.GenerateResponse:
        return oe.GenerateResponse(
            request_id=self._request_id, prompt=prompt, token=token, finished=finished, error=error
        )


def engine_error(error: RequestError) -> oe.EngineError:
    """An error after the request was accepted."""
    code = _ERROR_CODES.get(error.code, oe.ERROR_CODE_INTERNAL)
    return oe.EngineError(code=code, message=error.message, retryable=error.code in _RETRYABLE)


def _tokens(
    ids: Sequence[int], logprobs: Sequence[float], tops: Sequence[pb.TopLogprobs]
) -> Iterator[oe.TokenInfo]:
    """One for each token; without log-probabilities they have none."""
    for place, token in enumerate(ids):
        top = tops[place] if tops else pb.TopLogprobs()
        candidates = [
            oe.LogProb(token_id=each, logprob=logprob)
            for each, logprob in zip(top.token_ids, top.logprobs, strict=True)
        ]
        logprob = logprobs[place] if logprobs else None
        yield oe.TokenInfo(token_id=token, logprob=logprob, candidates=candidates)


def _prompt_output(started: pb.GenerateStarted) -> oe.PromptOutput:
    """The prompt's tokens, of which the first has no log-probability."""
    first, *rest = started.prompt_token_ids
    others = _tokens(rest, started.prompt_logprobs, started.prompt_top_logprobs)
    return oe.PromptOutput(tokens=[oe.TokenInfo(token_id=first), *others])


def _finished(delta: pb.Delta) -> oe.GenerationFinished:
    finished = oe.GenerationFinished(
        output_index=delta.index, reason=_FINISH_REASONS[delta.finish_reason]
    )
    if delta.finish_reason == pb.FINISH_REASON_EOS:
        finished.stop_match.eos_token_id = delta.token_ids[-1]
    elif delta.HasField("stop_text"):
        finished.stop_match.stop_text = delta.stop_text
    elif delta.HasField("stop_token_id"):
        finished.stop_match.stop_token_id = delta.stop_token_id
    return finished


def _usage(usage: pb.Usage) -> oe.Usage:
    return oe.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )
