"""Logits between the model and the draw: bias, penalties, and tokens that may not be drawn.

Owns their order and what it keeps on the device: how often each token stands in a sequence, and
which tokens a sequence may draw. Knows nothing of temperatures, filters or draws.

Order: bias → repetition → presence and frequency → exclusion, which comes last because nothing
brings an excluded token back. All of it is element by element, so the ranks of a tensor-parallel
group, which have the same logits, go on with the same.
Shapes: D rows that draw, V vocabulary, P rows of those that change, W mask words, R rows of
`SlotRows`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from switchyard.worker.link import NOT_FINITE
from workers.sampling.options import DrawOptions, SamplingMetadata, SamplingOptions
from workers.sampling.slot_rows import SlotRows
from workers.sampling.torch_sampler import lowest
from workers.staging import Staging

_WORD_BITS = 32
# Rows that are changed at once: a dozen temporary tensors of so many rows of the vocabulary.
_PIECE = 64
# In a token's count: it stands in the prompt. Below it, how often it stands in the output.
_IN_PROMPT = 1 << 30
_SPARE_WORDS = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessedLogits:
    """A step's logits on their way to a draw.

    Attributes:
        logits_DV: what to draw from; excluded tokens hold the lowest finite number.
        excludes: whether there are any.
        counted_P, count_rows_P: draws whose tokens are counted, and where, int64; None: none are.
    """

    logits_DV: torch.Tensor
    excludes: bool
    counted_P: torch.Tensor | None
    count_rows_P: torch.Tensor | None


class LogitsProcessor:
    """Applies sampling options to logits, on one device; memory is taken when the first sequence
    needs it."""

    def __init__(self, *, num_slots: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.device = device
        self.staging = Staging(device, _SPARE_WORDS)
        self.counts: SlotRows | None = None
        self.masks: SlotRows | None = None
        self.bits_8 = torch.tensor([1 << n for n in range(8)], dtype=torch.uint8, device=device)

    def forget(self, slot: int) -> None:
        """Free what the slot's last sequence held: a new one takes the slot."""
        for rows in (self.counts, self.masks):
            if rows is not None:
                rows.give_back(slot)

    def process(
        self, logits_DV: torch.Tensor, metadata: SamplingMetadata, last_token_S: torch.Tensor
    ) -> ProcessedLogits:
        """Apply the options of the step's draws.

        Args:
            logits_DV: of any dtype; may be changed in place.
            last_token_S: int32, the newest token of each slot before these draws.

        Raises:
            ValueError: a token or a mask does not fit the vocabulary.
        """
        vocab_size = logits_DV.shape[1]
        _check(metadata, vocab_size)
        penalized = [draw for draw in metadata.draws if draw.options.penalized]
        limited = [draw for draw in metadata.draws if draw.options.excludes]
        columns = _bias_columns(metadata.draws)
        if penalized:
            columns |= self._penalty_columns(penalized, vocab_size)
        if limited:
            columns |= self._limit_columns(limited, vocab_size)
        if len(metadata.masked_rows):
            columns |= {"masked": metadata.masked_rows, "mask_words": metadata.mask_words}
        if metadata.mask_triggers is not None:
            columns |= {"mask_slots": metadata.mask_slots, "triggers": metadata.mask_triggers}
        on = self.staging.copy(columns)
        if metadata.shifts:
            logits_DV = logits_DV.float()  # a bf16 near 20 cannot tell 0.1 less from none
        if len(columns["bias_rows"]):
            logits_DV[on["bias_rows"], on["bias_ids"]] += on["bias_values"]
        if penalized:
            self._rebuild_counts(on)
            self._penalize(logits_DV, on)
        if limited:
            assert self.masks is not None
            self._rebuild_masks(on)
            words_PW = self.masks.values_RW
            self._exclude(logits_DV, on["limited"], words_PW, word_rows_P=on["limit_rows"])
        if len(metadata.masked_rows):
            holds_P = None
            if metadata.mask_triggers is not None:
                triggers_P = on["triggers"]
                holds_P = (triggers_P < 0) | (last_token_S[on["mask_slots"]] == triggers_P)
            self._exclude(logits_DV, on["masked"], on["mask_words"], holds_P=holds_P)
        return ProcessedLogits(
            logits_DV=logits_DV,
            excludes=metadata.excludes,
            counted_P=on.get("penalized"),
            count_rows_P=on.get("count_rows"),
        )

    def record_draws(self, processed: ProcessedLogits, tokens_D: torch.Tensor) -> None:
        """Count the drawn tokens. A token where no token was allowed becomes NOT_FINITE, in place,
        and does not count."""
        logits_DV = processed.logits_DV
        if processed.excludes:
            drawn_DV = tokens_D.clamp(min=0).long()[:, None]
            none_left_D = logits_DV.gather(1, drawn_DV)[:, 0] <= lowest(logits_DV)
            tokens_D.masked_fill_(none_left_D, NOT_FINITE)
        if processed.counted_P is not None:
            assert self.counts is not None
            assert processed.count_rows_P is not None
            counts_RV = self.counts.values_RW
            drawn_P = tokens_D[processed.counted_P]
            places_P = processed.count_rows_P * counts_RV.shape[1] + drawn_P.clamp(min=0)
            counts_RV.view(-1).scatter_add_(0, places_P, (drawn_P >= 0).int())

    def _penalty_columns(
        self, penalized: list[DrawOptions], vocab_size: int
    ) -> dict[str, np.ndarray]:
        """The penalties of the draws, and the history of sequences whose first draw this is."""
        if self.counts is None:
            self.counts = SlotRows(width=vocab_size, num_slots=self.num_slots, device=self.device)
        slots = [draw.slot for draw in penalized]
        fresh = [slot not in self.counts for slot in slots]
        rows = self.counts.take(slots)
        prompt, output = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for number in np.flatnonzero(fresh):
            options, first = penalized[number].options, rows[number] * vocab_size
            prompt.append(first + options.history[: options.num_prompt])
            output.append(first + options.history[options.num_prompt :])
        factors = [(o.repetition, o.presence, o.frequency) for _, _, o in penalized]
        return {
            "penalized": np.array([draw.row for draw in penalized], dtype=np.int64),
            "count_rows": rows,
            "factors": np.array(factors, dtype=np.float32).T,
            "fresh_counts": rows[fresh],
            "prompt_places": np.concatenate(prompt),
            "output_places": np.concatenate(output),
        }

    def _rebuild_counts(self, on: dict[str, torch.Tensor]) -> None:
        assert self.counts is not None
        if not len(on["fresh_counts"]):
            return
        counts_RV = self.counts.values_RW
        counts_RV.index_fill_(0, on["fresh_counts"], 0)
        flat = counts_RV.view(-1)
        flat.scatter_(0, on["prompt_places"], _IN_PROMPT)
        output_places = on["output_places"]
        flat.scatter_add_(0, output_places, torch.ones_like(output_places, dtype=torch.int32))

    def _penalize(self, logits_DV: torch.Tensor, on: dict[str, torch.Tensor]) -> None:
        """Repetition divides logits above 0 and multiplies others (Keskar et al., "CTRL", 2019);
        presence and frequency are OpenAI's."""
        assert self.counts is not None
        factors = on["factors"][:, :, None]
        for start in range(0, len(on["penalized"]), _PIECE):
            piece = slice(start, start + _PIECE)
            rows_P = on["penalized"][piece]
            repetition_P1, presence_P1, frequency_P1 = factors[:, piece]
            counts_PV = self.counts.values_RW.index_select(0, on["count_rows"][piece])
            x_PV = logits_DV.index_select(0, rows_P)
            scaled_PV = torch.where(x_PV > 0, x_PV / repetition_P1, x_PV * repetition_P1)
            x_PV = torch.where(counts_PV != 0, scaled_PV, x_PV)
            in_output_PV = counts_PV & (_IN_PROMPT - 1)
            x_PV -= presence_P1 * (in_output_PV > 0)
            x_PV -= frequency_P1 * in_output_PV
            logits_DV.index_copy_(0, rows_P, x_PV)

    def _limit_columns(self, limited: list[DrawOptions], vocab_size: int) -> dict[str, np.ndarray]:
        """The draws with allowed or banned tokens, and the masks of sequences at their first."""
        num_words = _num_words(vocab_size)
        if self.masks is None:
            self.masks = SlotRows(width=num_words, num_slots=self.num_slots, device=self.device)
        slots = [draw.slot for draw in limited]
        fresh = [slot not in self.masks for slot in slots]
        rows = self.masks.take(slots)
        words = [_mask_words(limited[n].options, vocab_size) for n in np.flatnonzero(fresh)]
        return {
            "limited": np.array([draw.row for draw in limited], dtype=np.int64),
            "limit_rows": rows,
            "fresh_masks": rows[fresh],
            "fresh_words": np.array(words, dtype=np.int32).reshape(len(words), num_words),
        }

    def _rebuild_masks(self, on: dict[str, torch.Tensor]) -> None:
        assert self.masks is not None
        if len(on["fresh_masks"]):
            self.masks.values_RW.index_copy_(0, on["fresh_masks"], on["fresh_words"])

    def _exclude(
        self,
        logits_DV: torch.Tensor,
        rows_P: torch.Tensor,
        words_RW: torch.Tensor,
        *,
        word_rows_P: torch.Tensor | None = None,
        holds_P: torch.Tensor | None = None,
    ) -> None:
        """Tokens without a bit get the lowest number, but for logits that are not finite, which
        the draw must see.

        Args:
            word_rows_P: the mask of each row; None: masks stand in the order of the rows.
            holds_P: whether the mask of each row holds; None: all do.
        """
        for start in range(0, len(rows_P), _PIECE):
            piece = slice(start, start + _PIECE)
            own_P = rows_P[piece]
            words_PW = words_RW[piece if word_rows_P is None else word_rows_P[piece]]
            bits = words_PW.contiguous().view(torch.uint8)[:, :, None] & self.bits_8
            x_PV = logits_DV.index_select(0, own_P)
            excluded_PV = bits.flatten(1)[:, : x_PV.shape[1]] == 0
            if holds_P is not None:
                excluded_PV &= holds_P[piece, None]
            x_PV.masked_fill_(excluded_PV & x_PV.isfinite(), lowest(x_PV))
            logits_DV.index_copy_(0, own_P, x_PV)


def _bias_columns(draws: list[DrawOptions]) -> dict[str, np.ndarray]:
    """One entry a biased token of a row; no graph reads them, so their number has no bound."""
    biased = [draw for draw in draws if len(draw.options.bias_ids)]
    ids = [np.empty(0, dtype=np.int64), *(draw.options.bias_ids for draw in biased)]
    values = [np.empty(0, dtype=np.float32), *(draw.options.bias_values for draw in biased)]
    rows = np.array([draw.row for draw in biased], dtype=np.int64)
    return {
        "bias_rows": np.repeat(rows, [len(of_row) for of_row in ids[1:]]),
        "bias_ids": np.concatenate(ids),
        "bias_values": np.concatenate(values),
    }


def _mask_words(options: SamplingOptions, vocab_size: int) -> np.ndarray:
    """The tokens a sequence may draw, as words of bits."""
    bits = np.zeros(_num_words(vocab_size) * _WORD_BITS, dtype=np.bool_)
    bits[options.allowed_ids if len(options.allowed_ids) else slice(vocab_size)] = True
    bits[options.banned_ids] = False
    return np.packbits(bits, bitorder="little").view(np.int32)


def _num_words(vocab_size: int) -> int:
    return -(-vocab_size // _WORD_BITS)


def _check(metadata: SamplingMetadata, vocab_size: int) -> None:
    for _, slot, options in metadata.draws:
        if options.highest_id >= vocab_size:
            raise ValueError(
                f"slot {slot}: token {options.highest_id} is not below the vocabulary's "
                f"{vocab_size}"
            )
        if options.num_logprobs > vocab_size + 1:
            raise ValueError(
                f"slot {slot}: {options.num_logprobs - 1} most likely tokens of {vocab_size}"
            )
    words = metadata.mask_words.shape[1]
    if len(metadata.masked_rows) and words != _num_words(vocab_size):
        raise ValueError(
            f"masks of {words} words, {_num_words(vocab_size)} hold the vocabulary's {vocab_size}"
        )
