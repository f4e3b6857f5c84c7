"""From a StepRequest's columns to a batch on the device.

Owns what outlives a step on this rank: every slot's block tables, last drawn token, the state of
its logits processor and its sampling parameters. Of the model it knows only the heads that
attention is divided by, and how many groups of layers have tables of their own.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch

from switchyard.worker.v1 import worker_pb2
from workers.attention.layer import AttentionBatch, AttentionPlan
from workers.attention.plan import AttentionKind, decode_capacity, decode_tiles, plan_decode
from workers.attention.prefill_split import SPLIT_FIELDS, max_splits, tile_columns
from workers.linear_attention.plan import StateRows, state_columns
from workers.linear_attention.states import StatePlan
from workers.models.base import DrawnRows, ForwardBatch
from workers.rows import StepRows, int32s
from workers.sampling.logits_processor import LogitsProcessor
from workers.sampling.options import SamplingMetadata
from workers.sampling.slot_params import SlotParams
from workers.sampling.torch_sampler import SamplingRows
from workers.staging import Staging
from workers.step.block_tables import BlockTables
from workers.step.slot_states import SlotStates

_SPARE_WORDS = 1 << 16  # initial size of the staging that no graph reads


class BatchShape(NamedTuple):
    """What a captured step is padded to: its tokens, and whether all of them are decodes."""

    tokens: int
    decodes: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """The numbers by which attention kernels divide their work on this rank.

    Attributes:
        kinds: of layers, each once; all have the same ``kv_heads``.
    """

    kinds: tuple[AttentionKind, ...]
    kv_heads: int
    num_cores: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBatch:
    """A staged step.

    Attributes:
        rows: the rows of the step, without padding.
        shape: the shape it was padded to, None if it was not.
        last_D: index of the last token of each row that draws, into what the model returns, int32
            [D]; None: the first D are these.
        draw_slots_D: slot of each row that draws, int32, -1 for padding.
        sampling: None when no row draws.
        metadata: None when no row has options beyond `sampling`.
    """

    rows: StepRows
    shape: BatchShape | None
    forward: ForwardBatch
    last_D: torch.Tensor | None
    draw_slots_D: torch.Tensor
    sampling: SamplingRows | None
    metadata: SamplingMetadata | None

    @property
    def all_draw(self) -> bool:
        """Whether the batch is padded to decodes, each of which draws."""
        return self.shape is not None and self.shape.decodes


class BatchBuilder:
    """Stages steps.

    Args:
        num_slots: slots of this replica.
        max_blocks: blocks of the longest sequence, in each group of layers.
        block_size: tokens in a block.
        max_tokens: most tokens of a step.
        attention: plans for attention kernels are made with it; None: there are none.
        num_groups: groups of layers.
        num_kept_states: states beside those of slots, of the layers that have any; None: no layer
            has.
        picks_drawn: the last layer need not go on with tokens that nobody draws behind; several
            replicas would have to agree on their number.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        max_blocks: int,
        block_size: int,
        max_tokens: int,
        device: torch.device,
        attention: AttentionShape | None = None,
        num_groups: int = 1,
        num_kept_states: int | None = None,
        picks_drawn: bool = False,
    ) -> None:
        self.picks_drawn = picks_drawn
        self.states = None
        if num_kept_states is not None:
            self.states = SlotStates(num_slots=num_slots, num_kept=num_kept_states)
        self.num_slots = num_slots
        self.block_size = block_size
        self.device = device
        self.attention = attention
        self.tables = BlockTables(
            num_groups=num_groups, num_slots=num_slots, max_blocks=max_blocks, device=device
        )
        kv_heads = 0 if attention is None else attention.kv_heads
        # Between steps zeros, which decode attention leaves behind.
        self.finished_SK = torch.zeros(num_slots, kv_heads, dtype=torch.int32, device=device)
        num_splits = max_splits(kv_heads, attention.num_cores) if attention is not None else 0
        # Likewise, by prefill attention.
        self.finished_CK = torch.zeros(num_splits, kv_heads, dtype=torch.int32, device=device)
        self.params = SlotParams(num_slots)
        self.logits_processor = LogitsProcessor(num_slots=num_slots, device=device)
        self.last_token = torch.zeros(num_slots, dtype=torch.int32, device=device)
        num_kinds = 1 if attention is None else len(attention.kinds)
        a_kind = 8 * max_tokens + 64 * num_slots + SPLIT_FIELDS * num_splits
        a_kind += 6 * max_tokens + 16 * num_slots if self.states is not None else 0
        self.columns = Staging(device, 8 * max_tokens + 192 * num_slots + num_kinds * a_kind + 4096)
        self.pairs = Staging(device, _SPARE_WORDS)

    def build(self, step: worker_pb2.StepRequest, shape: BatchShape | None = None) -> DeviceBatch:
        """Take in the step's changes and stage its batch.

        Args:
            shape: the shape it is padded to. Sizes and addresses of all that the model reads then
                depend on the shape alone; those of the drawing rows do so in shapes of decodes.

        Raises:
            ValueError: the columns contradict each other or name what does not exist.
        """
        self._enter(step)
        rows = StepRows.from_step(step)
        rows.check_slots(self.num_slots)
        metadata = self._metadata(step, rows)
        self.tables.extend(step, rows.slots)
        rows.check_room(self.tables.lengths_GS.min(0) * self.block_size)
        num_tokens = int(rows.num_tokens.sum())
        padded = rows.padded(shape.tokens) if shape is not None and shape.decodes else rows
        columns = self._token_columns(step, padded, num_tokens if shape is None else shape.tokens)
        columns["num_valid"] = np.array([num_tokens], dtype=np.int32)
        num_decodes = step.num_decodes
        if shape is not None:
            num_decodes = shape.tokens if shape.decodes else 0
        if self.attention is not None:
            columns |= self._attention_columns(num_decodes, padded, shape, self.attention)
        state_rows = None
        if self.states is not None:
            state_rows = self.states.rows(step, rows).padded(len(padded.slots))
        if state_rows is not None and self.attention is not None:
            num_padded = len(columns["ids"])
            columns |= state_columns(
                padded, state_rows, num_decodes, num_padded, self._padded_to(shape)
            )
        slots, lengths = padded.slots[padded.draws], padded.lengths[padded.draws]
        picks = self._picks_drawn(len(columns["ids"]), shape, metadata)
        if picks:
            columns |= self._drawn_columns(padded)
        columns |= self._draw_columns(padded, slots, lengths, of_drawn=picks)
        on = self.columns.copy(columns)
        max_tokens = step.max_replica_tokens if shape is None else shape.tokens
        forward = ForwardBatch(
            ids_T=on["ids"],
            last_token=self.last_token,
            attention=self._attention_batch(num_decodes, padded, on, state_rows),
            max_tokens=max_tokens,
            num_valid=None if shape is None else on["num_valid"],
            drawn=DrawnRows(tokens_R=on["drawn"], num_valid=on["num_drawn"]) if picks else None,
        )
        return DeviceBatch(
            rows=rows,
            shape=shape,
            forward=forward,
            last_D=on.get("last"),
            draw_slots_D=on["draw_slots"],
            sampling=self._sampling(slots, lengths, on, metadata),
            metadata=metadata,
        )

    def _enter(self, step: worker_pb2.StepRequest) -> None:
        """New sequences take their slots."""
        for new in step.new_sequences:
            self.params.set(new)
            self.logits_processor.forget(new.slot)
            self.tables.clear(new.slot)
            if self.states is not None:
                self.states.enter(new)

    def _padded_to(self, shape: BatchShape | None) -> tuple[int, int] | None:
        """Tokens and rows that plans of a captured step are as long as."""
        return None if shape is None else (shape.tokens, self.num_slots)

    def _metadata(self, step: worker_pb2.StepRequest, rows: StepRows) -> SamplingMetadata | None:
        """None when no row has options."""
        if not (self.params.has_options[rows.slots].any() or step.masked_draws or step.draw_masks):
            return None
        return SamplingMetadata.of(step, rows, self.params.options)

    def _token_columns(
        self, step: worker_pb2.StepRequest, rows: StepRows, size: int
    ) -> dict[str, np.ndarray]:
        """One entry a token, and padding behind."""
        num_tokens = int(rows.num_tokens.sum())
        row_of_token = np.repeat(np.arange(len(rows.slots)), rows.num_tokens)
        starts = np.repeat(rows.positions - rows.first_token, rows.num_tokens)
        ids = np.full(size, -1, dtype=np.int32)
        if len(step.token_ids):
            ids[step.num_decodes : num_tokens] = int32s(step, "token_ids")
        positions = np.zeros(size, dtype=np.int32)
        positions[:num_tokens] = np.arange(num_tokens) + starts
        slots = np.full(size, -1, dtype=np.int32)
        slots[:num_tokens] = rows.slots[row_of_token]
        row_starts = np.zeros(size, dtype=np.int32)
        row_starts[:num_tokens] = rows.positions[row_of_token]
        return {"ids": ids, "positions": positions, "slots": slots, "starts": row_starts}

    def _picks_drawn(
        self, num_tokens: int, shape: BatchShape | None, metadata: SamplingMetadata | None
    ) -> bool:
        """Whether the last layer goes on with `DrawnRows`, of so many tokens, padding included."""
        if not self.picks_drawn or (shape is not None and shape.decodes):
            return False
        return num_tokens >= 2 * self.num_slots and (metadata is None or not metadata.prompts)

    def reads_prompts(self, step: worker_pb2.StepRequest) -> bool:
        """Whether the last hidden states of a step's prompts may be read, not only those of tokens
        to draw behind: no captured shape has them. To be asked before the step is built."""
        if any(new.prompt_logprobs for new in step.new_sequences):
            return True
        options = (self.params.options.get(slot) for slot in step.slots[step.num_decodes :])
        return any(each is not None and each.prompt_logprobs for each in options)

    def _drawn_columns(self, rows: StepRows) -> dict[str, np.ndarray]:
        """As many entries as there are slots, those of rows that draw first."""
        last = _last_tokens(rows)
        drawn = np.zeros(self.num_slots, dtype=np.int32)
        drawn[: len(last)] = last
        return {"drawn": drawn, "num_drawn": np.array([len(last)], dtype=np.int32)}

    def _draw_columns(
        self, rows: StepRows, slots: np.ndarray, lengths: np.ndarray, *, of_drawn: bool
    ) -> dict[str, np.ndarray]:
        """One entry a row that draws; ``of_drawn``: the model returns these alone."""
        columns = {
            "draw_slots": slots,
            "draw_positions": lengths.astype(np.int64),
            **self.params.columns(slots),
        }
        if not of_drawn and len(slots) != rows.num_tokens.sum():
            columns["last"] = _last_tokens(rows)
        return columns

    def _attention_columns(
        self, num_decodes: int, rows: StepRows, shape: BatchShape | None, heads: AttentionShape
    ) -> dict[str, np.ndarray]:
        """Plans of the attention kernels; a captured step's are as long as any of its shape."""
        columns = {}
        if num_decodes:
            unit = decode_tiles(num_decodes).unit
            lengths, slots = rows.lengths[:num_decodes], rows.slots[:num_decodes]
            for window in {kind.window: None for kind in heads.kinds}:
                capacity = decode_capacity(num_decodes, heads.kv_heads, heads.num_cores, window)
                columns[_chunks(window)] = plan_decode(lengths, slots, capacity, unit, window)
        if shape is None and num_decodes == len(rows.slots):
            return columns
        if shape is None or not shape.decodes:
            for kind in heads.kinds:
                columns[_tiles(kind)] = tile_columns(
                    rows,
                    num_decodes,
                    kind=kind,
                    kv_heads=heads.kv_heads,
                    num_cores=heads.num_cores,
                    shape=self._padded_to(shape),
                )
        return columns

    def _attention_batch(
        self,
        num_decodes: int,
        rows: StepRows,
        on: dict[str, torch.Tensor],
        state_rows: StateRows | None,
    ) -> AttentionBatch:
        kinds = () if self.attention is None else self.attention.kinds
        return AttentionBatch(
            positions_T=on["positions"],
            slots_T=on["slots"],
            tables=self.tables.groups[0],
            other_tables=tuple(self.tables.groups[1:]),
            slots=rows.slots.tolist(),
            lengths=rows.lengths.tolist(),
            num_tokens=rows.num_tokens.tolist(),
            num_decodes=num_decodes,
            plans={
                kind: AttentionPlan(on.get(_chunks(kind.window)), on.get(_tiles(kind)))
                for kind in kinds
            },
            finished_SK=self.finished_SK,
            finished_CK=self.finished_CK,
            starts_T=on["starts"],
            states=None if state_rows is None else _state_plan(state_rows, on),
        )

    def _suppressed(
        self, slots: np.ndarray, lengths: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Pairs that may not be drawn; no graph reads them, so their number has no bound."""
        draw_rows, ids = self.params.suppressed(slots, lengths)
        if not len(ids):
            return None
        on = self.pairs.copy({"rows": draw_rows, "ids": ids})
        return on["rows"], on["ids"]

    def _sampling(
        self,
        slots: np.ndarray,
        lengths: np.ndarray,
        on: dict[str, torch.Tensor],
        metadata: SamplingMetadata | None,
    ) -> SamplingRows | None:
        """Of the rows that draw; None when none does."""
        if not len(slots):
            return None
        any_random, any_filter = self.params.kinds(slots)
        return SamplingRows(
            temperature_D=on["temperature"],
            top_p_D=on["top_p"],
            min_p_D=on["min_p"],
            top_k_D=on["top_k"],
            seed_D=on["seed"],
            sample_index_D=on["sample_index"],
            position_D=on["draw_positions"],
            suppressed=self._suppressed(slots, lengths),
            any_random=any_random,
            any_filter=any_filter,
            any_excluded=metadata is not None and metadata.excludes,
        )


def _state_plan(rows: StateRows, on: dict[str, torch.Tensor]) -> StatePlan:
    none = on["slots"][:0]
    return StatePlan(
        rows=rows,
        sources_T=on.get("sources", none),
        keeps_T=on.get("keeps", none),
        chunks_KF=on.get("chunks"),
        rows_RF=on.get("rows"),
    )


def _last_tokens(rows: StepRows) -> np.ndarray:
    """Of each row that draws, int32."""
    last: np.ndarray = (rows.first_token + rows.num_tokens - 1)[rows.draws]
    return last


def _chunks(window: int | None) -> str:
    """The column of decodes' chunks, which layers of equal windows share."""
    return f"chunks of {window}"


def _tiles(kind: AttentionKind) -> str:
    """The column of prefills' tiles."""
    return f"tiles of {kind}"
