"""Checks the ranks' results of a step, and turns them into columns.

Owns how many values the result of a batch has, and which values are possible. Knows messages and
batches; nothing of streams or requests.
"""

from __future__ import annotations

import dataclasses
import math

from frontend.scheduler.step import Drawn, NewSequence, ReplicaBatch, StepLogprobs
from switchyard.worker.link import NOT_FINITE
from switchyard.worker.v1 import worker_pb2

_STATS = ("device_seconds", "floor_seconds", "idle_seconds", "bytes_moved", "flops")


@dataclasses.dataclass(frozen=True, slots=True)
class ExpectedColumns:
    """How many values each column of a replica's result has; see worker.proto's StepResult."""

    num_draws: int
    num_logprobs: int = 0
    num_tops: int = 0
    num_prompt_logprobs: int = 0
    num_prompt_tops: int = 0

    def problem(self, result: worker_pb2.StepResult, vocab_size: int) -> str:
        """What is wrong with ``result``, to follow "step 7"; empty when it can be true."""
        tokens = list(result.token_ids)  # a list is gone through much faster
        if len(tokens) != self.num_draws:
            return f"drew {len(tokens)} tokens, expected {self.num_draws}"
        if tokens and not NOT_FINITE <= min(tokens) <= max(tokens) < vocab_size:
            return f"drew tokens {min(tokens)} to {max(tokens)} of a vocabulary of {vocab_size}"
        for name, count in (
            ("logprobs", self.num_logprobs),
            ("top_token_ids", self.num_tops),
            ("top_logprobs", self.num_tops),
            ("prompt_logprobs", self.num_prompt_logprobs),
            ("prompt_top_token_ids", self.num_prompt_tops),
            ("prompt_top_logprobs", self.num_prompt_tops),
        ):
            values = getattr(result, name)
            if len(values) != count:
                return f"has {len(values)} {name}, expected {count}"
            if values and name.endswith("ids") and max(values) >= vocab_size:
                return f"has a token {max(values)} in {name} of a vocabulary of {vocab_size}"
        return ""


class LogprobSlots:
    """The slots of one replica whose sequence wants log-probabilities."""

    def __init__(self) -> None:
        self._sequences: dict[int, NewSequence] = {}

    def expected(self, batch: ReplicaBatch) -> ExpectedColumns:
        """What the batch's result must hold; call it for batches in the order they are sent in."""
        sequences = self._sequences
        for new in batch.new_sequences:
            sequences.pop(new.slot, None)
            if new.sampling.num_logprobs:
                sequences[new.slot] = new
        if not sequences:
            return ExpectedColumns(batch.num_draws)
        own = tops = prompt_own = prompt_tops = 0
        for row, slot in enumerate(batch.slots):
            new_sequence = sequences.get(slot)
            if new_sequence is None:
                continue
            num_tops, prompt_row = new_sequence.sampling.num_logprobs - 1, row - batch.num_decodes
            if prompt_row < 0 or batch.draws[prompt_row]:
                own, tops = own + 1, tops + num_tops
            if prompt_row >= 0 and new_sequence.prompt_logprobs:
                end = batch.positions[row] + batch.num_tokens[prompt_row]
                count = max(0, min(end, new_sequence.num_prompt - 1) - batch.positions[row])
                prompt_own, prompt_tops = prompt_own + count, prompt_tops + count * num_tops
        return ExpectedColumns(batch.num_draws, own, tops, prompt_own, prompt_tops)


def stats_problem(result: worker_pb2.StepResult) -> str:
    """What is wrong with a rank's stats, to follow "step 7"; empty when they can be true."""
    for name in _STATS:
        value = getattr(result, name)
        if not math.isfinite(value):
            return f"has {name} {value}"
    return ""


def drawn_of(result: worker_pb2.StepResult) -> Drawn:
    """The columns of a result; those of log-probabilities are mostly empty."""
    tokens = list(result.token_ids)
    if not result.logprobs and not result.prompt_logprobs:
        return Drawn(tokens=tokens)
    return Drawn(
        tokens=tokens,
        logprobs=StepLogprobs(
            logprobs=list(result.logprobs),
            top_ids=list(result.top_token_ids),
            top_logprobs=list(result.top_logprobs),
        ),
        prompt_logprobs=StepLogprobs(
            logprobs=list(result.prompt_logprobs),
            top_ids=list(result.prompt_top_token_ids),
            top_logprobs=list(result.prompt_top_logprobs),
        ),
    )
