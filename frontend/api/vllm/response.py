"""Converts `switchyard.v1` events to the answers of `vllm.grpc.engine`.

Owns their shape: chunks of new tokens, then for each sequence one message that holds all of it.
Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from smg_grpc_proto.generated import vllm_engine_pb2 as vllm

from switchyard.v1 import inference_pb2 as pb

_FINISH_REASONS = {
    pb.FINISH_REASON_EOS: "stop",
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_ABORTED: "abort",
}


class Answer:
    """The messages of one request.

    Args:
        prompt_ids: the prompt's tokens, for its log-probabilities; empty without them.
        stream: send chunks too, not only the whole at the end.
    """

    def __init__(self, prompt_ids: Sequence[int], stream: bool) -> None:
        self._prompt_ids = prompt_ids
        self._stream = stream
        self._started = pb.GenerateStarted()
        self._whole: dict[int, pb.Delta] = {}

    def add(self, event: pb.GenerateResponse) -> Iterable[vllm.GenerateResponse]:
        """The messages that an event becomes."""
        if event.HasField("started"):
            self._started = event.started
            return []
        if event.HasField("finished"):
            return [self._complete(delta, event.finished.usage) for delta in self._whole.values()]
        delta = event.delta
        is_first = delta.index not in self._whole
        whole = self._whole.setdefault(delta.index, pb.Delta())
        whole.MergeFrom(delta)
        if not self._stream or not delta.token_ids:
            return []
        return [self._chunk(delta, len(whole.token_ids), is_first)]

    def _chunk(self, delta: pb.Delta, num_generated: int, is_first: bool) -> vllm.GenerateResponse:
        return vllm.GenerateResponse(
            chunk=vllm.GenerateStreamChunk(
                token_ids=delta.token_ids,
                prompt_tokens=self._started.prompt_tokens,
                completion_tokens=num_generated,
                output_logprobs=_output_logprobs(delta),
                input_logprobs=self._input_logprobs() if is_first else None,
                index=delta.index,
            )
        )

    def _complete(self, whole: pb.Delta, usage: pb.Usage) -> vllm.GenerateResponse:
        complete = vllm.GenerateComplete(
            output_ids=whole.token_ids,
            finish_reason=_FINISH_REASONS[whole.finish_reason],
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=len(whole.token_ids),
            cached_tokens=usage.cached_prompt_tokens,
            output_logprobs=_output_logprobs(whole),
            input_logprobs=self._input_logprobs(),
            index=whole.index,
        )
        match whole.WhichOneof("matched_stop"):
            case "stop_text":
                complete.matched_stop_str = whole.stop_text
            case "stop_token_id":
                complete.matched_token_id = whole.stop_token_id
        return vllm.GenerateResponse(complete=complete)

    def _input_logprobs(self) -> vllm.InputLogProbs | None:
        """The prompt's, of which the first token has none."""
        values = self._started.prompt_logprobs
        if not self._prompt_ids or not values:
            return None
        first = vllm.InputTokenLogProb()
        tops = self._started.prompt_top_logprobs
        return vllm.InputLogProbs(
            token_logprobs=[first, *(vllm.InputTokenLogProb(value=value) for value in values)],
            token_ids=self._prompt_ids,
            top_logprobs=[vllm.TopLogProbs(), *map(_top, tops)] if tops else [],
        )


def _output_logprobs(delta: pb.Delta) -> vllm.OutputLogProbs | None:
    if not delta.logprobs:
        return None
    return vllm.OutputLogProbs(
        token_logprobs=delta.logprobs,
        token_ids=delta.token_ids,
        top_logprobs=map(_top, delta.top_logprobs),
    )


def _top(top: pb.TopLogprobs) -> vllm.TopLogProbs:
    return vllm.TopLogProbs(values=top.logprobs, token_ids=top.token_ids)
