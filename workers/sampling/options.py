"""Sampling options of sequences beyond temperature and filters, and a step's metadata, on the host.

Owns how they are read from NewSequence and StepRequest, and their checks. Knows nothing of devices,
and of the vocabulary only that ids are below its size. Most sequences have no such options.
Shapes: M masked draws, W words of a mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from switchyard.worker.v1 import worker_pb2
from workers.rows import StepRows

_WORD_BYTES = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplingOptions:
    """Bias, penalties, exclusions and log-probabilities of one sequence, as in worker.proto's
    NewSequence; ids are int64.

    Attributes:
        bias_values: fp32, one for each of `bias_ids`.
        repetition: 1.0 is off.
        highest_id: of all its ids, -1 without any.
    """

    bias_ids: np.ndarray
    bias_values: np.ndarray
    allowed_ids: np.ndarray
    banned_ids: np.ndarray
    repetition: float
    presence: float
    frequency: float
    history: np.ndarray
    num_prompt: int
    num_logprobs: int
    prompt_logprobs: bool
    highest_id: int

    @classmethod
    def of(cls, new: worker_pb2.NewSequence) -> SamplingOptions | None:
        """None for a sequence without any.

        Raises:
            ValueError: its fields contradict each other.
        """
        ids = {
            "bias_ids": np.array(new.bias_token_ids, dtype=np.int64),
            "allowed_ids": np.array(new.allowed_token_ids, dtype=np.int64),
            "banned_ids": np.array(new.banned_token_ids, dtype=np.int64),
            "history": np.array(new.history_token_ids, dtype=np.int64),
        }
        options = cls(
            **ids,
            bias_values=np.array(new.bias_values, dtype=np.float32),
            repetition=new.repetition_penalty or 1.0,
            presence=new.presence_penalty,
            frequency=new.frequency_penalty,
            num_prompt=new.num_prompt_tokens,
            num_logprobs=new.num_logprobs,
            prompt_logprobs=new.prompt_logprobs,
            highest_id=max(int(column.max(initial=-1)) for column in ids.values()),
        )
        _check(options, new.slot)
        changes = options.penalized or options.excludes or len(options.bias_ids)
        return options if changes or options.num_logprobs else None

    @property
    def penalized(self) -> bool:
        """Whether tokens seen before weigh less or more."""
        return self.repetition != 1.0 or self.presence != 0.0 or self.frequency != 0.0

    @property
    def excludes(self) -> bool:
        """Whether some tokens may never be drawn."""
        return bool(len(self.allowed_ids) or len(self.banned_ids))


class DrawOptions(NamedTuple):
    """A draw whose sequence has options; `row` is its number among the draws of a step."""

    row: int
    slot: int
    options: SamplingOptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptSpan:
    """Consecutive prompt tokens of a step whose next tokens' log-probabilities are reported.

    Attributes:
        first: number of the first of them in the step.
        next_ids: int64, the token behind each.
        num_logprobs: values for each.
    """

    first: int
    next_ids: np.ndarray
    num_logprobs: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingMetadata:
    """The sampling options of a step's rows.

    Attributes:
        draws: those whose sequence has options, ascending by row.
        masked_rows: draws that a mask narrows, int64 [M].
        mask_words: int32 [M, W]; bit t % 32 of word t // 32 allows token t.
        mask_slots: of these draws, int64 [M].
        mask_triggers: int32 [M]: the slot's newest token behind which alone the mask holds, -1: it
            holds; None: all do.
        prompts: in order of the rows.
    """

    draws: list[DrawOptions]
    masked_rows: np.ndarray
    mask_words: np.ndarray
    mask_slots: np.ndarray
    mask_triggers: np.ndarray | None
    prompts: list[PromptSpan]

    @classmethod
    def of(
        cls, step: worker_pb2.StepRequest, rows: StepRows, by_slot: Mapping[int, SamplingOptions]
    ) -> SamplingMetadata:
        """Of the rows of a step, with the options of the sequences by slot.

        Raises:
            ValueError: the masks' columns contradict each other.
        """
        slots = rows.slots[rows.draws].tolist()
        masked_rows, mask_words = _masks(step, len(slots))
        num_decodes = int(rows.draws[: step.num_decodes].sum())
        return cls(
            draws=[
                DrawOptions(row, slot, by_slot[slot])
                for row, slot in enumerate(slots)
                if slot in by_slot
            ],
            masked_rows=masked_rows,
            mask_words=mask_words,
            mask_slots=rows.slots[rows.draws][masked_rows].astype(np.int64),
            mask_triggers=_triggers(step, masked_rows, num_decodes),
            prompts=_prompts(rows, step.num_decodes, by_slot),
        )

    @property
    def excludes(self) -> bool:
        """Whether some draw has tokens that may not be drawn, beyond suppressed ones."""
        return bool(len(self.masked_rows)) or any(draw.options.excludes for draw in self.draws)

    @property
    def shifts(self) -> bool:
        """Whether some draw's logits change by a bias or a penalty."""
        return any(len(o.bias_ids) or o.penalized for _, _, o in self.draws)


def _check(options: SamplingOptions, slot: int) -> None:
    """Raise ValueError where fields contradict each other."""
    num_ids, num_values = len(options.bias_ids), len(options.bias_values)
    if num_ids != num_values or len(np.unique(options.bias_ids)) != num_ids:
        raise ValueError(
            f"slot {slot}: {num_ids} biased tokens, {num_values} biases; each token may have one"
        )
    if options.repetition < 0.0:
        raise ValueError(f"slot {slot}: repetition_penalty {options.repetition} is below 0")
    if options.prompt_logprobs and not options.num_logprobs:
        raise ValueError(f"slot {slot}: prompt_logprobs, but num_logprobs is 0")
    needed = options.penalized or options.prompt_logprobs
    if options.num_prompt > len(options.history) or (needed and not options.num_prompt):
        raise ValueError(
            f"slot {slot}: {len(options.history)} tokens of history, {options.num_prompt} of them "
            "the prompt's; penalties and prompt_logprobs need both"
        )


def _masks(step: worker_pb2.StepRequest, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and words of the masks of single draws."""
    rows = np.array(step.masked_draws, dtype=np.int64)
    masks = step.draw_masks  # each reading copies it
    num_bytes = len(masks)
    unit = _WORD_BYTES * max(1, len(rows))
    if bool(num_bytes) != bool(len(rows)) or num_bytes % unit:
        raise ValueError(
            f"step {step.step_id}: {num_bytes} bytes of masks for {len(rows)} masked draws"
        )
    if len(rows) and (rows[-1] >= num_draws or (np.diff(rows) <= 0).any()):
        raise ValueError(
            f"step {step.step_id}: masked draws {rows.tolist()} of {num_draws} draws; "
            "they must ascend and exist"
        )
    words = np.frombuffer(masks, dtype="<i4")
    return rows, words.reshape(len(rows), -1) if len(rows) else words.reshape(0, 0)


def _triggers(
    step: worker_pb2.StepRequest, masked_rows: np.ndarray, num_decodes: int
) -> np.ndarray | None:
    """Triggers of the masks; None where there are none."""
    triggers = np.array(step.mask_triggers, dtype=np.int32)
    if not len(triggers):
        return None
    if len(triggers) != len(masked_rows) or (masked_rows[triggers >= 0] >= num_decodes).any():
        raise ValueError(
            f"step {step.step_id}: triggers {triggers.tolist()} of masked draws "
            f"{masked_rows.tolist()}, of which the first {num_decodes} are decodes; each mask has "
            "one, and only those of decodes may be tokens"
        )
    return triggers


def _prompts(
    rows: StepRows, num_decodes: int, by_slot: Mapping[int, SamplingOptions]
) -> list[PromptSpan]:
    spans = []
    for row in range(num_decodes, len(rows.slots)):
        options = by_slot.get(int(rows.slots[row]))
        if options is None or not options.prompt_logprobs:
            continue
        start, end = int(rows.positions[row]), int(rows.lengths[row])
        next_ids = options.history[start + 1 : min(end + 1, options.num_prompt)]
        if len(next_ids):
            spans.append(
                PromptSpan(
                    first=int(rows.first_token[row]),
                    next_ids=next_ids,
                    num_logprobs=options.num_logprobs,
                )
            )
    return spans
