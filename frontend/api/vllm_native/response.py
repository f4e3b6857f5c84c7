"""Converts `switchyard.v1` events to the answers of vLLM's own protocol.

Owns their shape: facts of the prompt first, then outputs. Knows nothing of requests but what they
want to see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from switchyard.v1 import inference_pb2 as pb
from switchyard.vllm import native_pb2 as vllm

_FINISH_REASONS = {
    pb.FINISH_REASON_EOS: vllm.FinishInfo.STOP,
    pb.FINISH_REASON_STOP: vllm.FinishInfo.STOP,
    pb.FINISH_REASON_LENGTH: vllm.FinishInfo.LENGTH,
    pb.FINISH_REASON_ABORTED: vllm.FinishInfo.ABORTED,
}


class Answer:
    """The messages of one request.

    Args:
        wanted: what they show.
        prompt_ids: the prompt's tokens, where they are wanted.
    """

    def __init__(self, wanted: vllm.ResponseOptions, prompt_ids: Sequence[int] = ()) -> None:
        self._shows_ids = wanted.output_token_ids
        self._shows_text = not wanted.HasField("output_text") or wanted.output_text
        self._prompt_ids = prompt_ids
        self._num_tokens: dict[int, int] = {}

    def add(self, event: pb.GenerateResponse) -> Iterator[vllm.GenerateResponse]:
        """The messages that an event becomes."""
        match event.WhichOneof("event"):
            case "started":
                yield vllm.GenerateResponse(prompt_info=self._prompt_info(event.started))
            case "delta":
                yield vllm.GenerateResponse(outputs=self._output(event.delta))

    def whole(self, message: pb.CompleteResponse) -> vllm.GenerateResponse:
        """The only message of a request for one output."""
        return vllm.GenerateResponse(
            prompt_info=self._prompt_info(message.started), outputs=self._output(message.outputs[0])
        )

    def _prompt_info(self, started: pb.GenerateStarted) -> vllm.PromptInfo:
        """The first token has no log-probability, for which that protocol writes 0."""
        info = vllm.PromptInfo(num_prompt_tokens=started.prompt_tokens, token_ids=self._prompt_ids)
        if started.prompt_logprobs:
            info.logprobs.append(0.0)
            info.logprobs.extend(started.prompt_logprobs)
        if started.prompt_top_logprobs:
            info.candidate_tokens.add()
            ids = started.prompt_token_ids[1:]
            info.candidate_tokens.extend(_candidates(ids, started.prompt_top_logprobs))
        return info

    def _output(self, delta: pb.Delta) -> vllm.SequenceOutput:
        num_new = len(delta.token_ids)
        num_tokens = self._num_tokens.get(delta.index, 0) + num_new
        self._num_tokens[delta.index] = num_tokens
        return vllm.SequenceOutput(
            index=delta.index,
            text=delta.text if self._shows_text else "",
            num_tokens=num_new,
            token_ids=delta.token_ids if self._shows_ids else (),
            logprobs=delta.logprobs,
            candidate_tokens=_candidates(delta.token_ids, delta.top_logprobs),
            finish_info=_finish_info(delta, num_tokens) if delta.finish_reason else None,
        )


def _candidates(
    ids: Sequence[int], tops: Iterable[pb.TopLogprobs]
) -> Iterator[vllm.CandidateTokenInfo]:
    """Alternatives at each position, without the token that stands there."""
    for token, top in zip(ids, tops, strict=False):
        info = vllm.CandidateTokenInfo()
        for other, logprob in zip(top.token_ids, top.logprobs, strict=True):
            if other != token:
                info.tokens.add(id=other, logprob=logprob)
        yield info


def _finish_info(delta: pb.Delta, num_tokens: int) -> vllm.FinishInfo:
    info = vllm.FinishInfo(
        num_output_tokens=num_tokens, finish_reason=_FINISH_REASONS[delta.finish_reason]
    )
    if delta.finish_reason == pb.FINISH_REASON_EOS:
        info.eos_token_id = delta.token_ids[-1]
    elif delta.HasField("stop_text"):
        info.stop_string = delta.stop_text
    elif delta.HasField("stop_token_id"):
        info.stop_token_id = delta.stop_token_id
    return info
