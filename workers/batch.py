"""From a StepRequest's columns to a batch on the device.

Owns what outlives a step on this rank: every slot's block table and sampling parameters (host),
and its last drawn token (device). Staging is one buffer and one copy a step. Knows nothing of the
model.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from switchyard.worker.v1 import worker_pb2
from workers.layers.attention import AttentionBatch
from workers.models.base import ForwardBatch
from workers.sampler import SamplingRows

_RING = 4  # staging buffers; more than the steps a frontend keeps in flight


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBatch:
    """A staged step.

    Attributes:
        last_D: index of the last token of each row that draws, into the step's tokens, int64 [D].
        draw_slots_D: slot of each row that draws, int64.
        sampling: None when no row draws.
    """

    forward: ForwardBatch
    last_D: torch.Tensor
    draw_slots_D: torch.Tensor
    sampling: SamplingRows | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Suppression:
    """Tokens, int64, that a slot may not draw before a position."""

    token_ids: np.ndarray
    until: int


class _SlotParams:
    """Sampling parameters by slot, columns on the host."""

    def __init__(self, num_slots: int) -> None:
        self.floats = np.zeros((3, num_slots), dtype=np.float32)  # temperature, top_p, min_p
        self.ints = np.zeros((3, num_slots), dtype=np.int64)  # top_k, seed, sample_index
        self.suppressions: dict[int, _Suppression] = {}

    def set(self, new: worker_pb2.NewSequence) -> None:
        seed = np.uint64(new.seed).astype(np.int64)
        self.floats[:, new.slot] = (new.temperature, new.top_p, new.min_p)
        self.ints[:, new.slot] = (new.top_k, seed, new.sample_index)
        self.suppressions.pop(new.slot, None)
        if new.suppressed_token_ids:
            self.suppressions[new.slot] = _Suppression(
                np.array(new.suppressed_token_ids, dtype=np.int64), new.suppress_until
            )


class BatchBuilder:
    """Stages steps.

    Args:
        num_slots: slots of this replica.
        max_blocks: blocks of the longest sequence.
        block_size: tokens in a block.
    """

    def __init__(
        self, *, num_slots: int, max_blocks: int, block_size: int, device: torch.device
    ) -> None:
        self.block_size = block_size
        self.device = device
        self.tables = np.zeros((num_slots, max_blocks), dtype=np.int64)
        self.table_lengths = np.zeros(num_slots, dtype=np.int64)
        self.params = _SlotParams(num_slots)
        self.last_token = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.staging = [_Staging(device) for _ in range(_RING)]
        self.turn = 0

    def build(self, step: worker_pb2.StepRequest) -> DeviceBatch:
        """Take in the step's changes and stage its batch.

        Raises:
            ValueError: the columns contradict each other or name what does not exist.
        """
        for new in step.new_sequences:
            self.params.set(new)
            self.table_lengths[new.slot] = 0
        rows = _Rows.from_step(step)
        self._add_blocks(step, rows.slots)
        columns = self._columns(step, rows)
        self.turn = (self.turn + 1) % _RING
        on_device = self.staging[self.turn].copy(columns)
        return self._assemble(step, rows, on_device)

    def _add_blocks(self, step: worker_pb2.StepRequest, slots: np.ndarray) -> None:
        counts = np.array(step.num_new_blocks, dtype=np.int64)
        blocks = np.array(step.new_blocks, dtype=np.int64)
        if len(counts) != len(slots) or counts.sum() != len(blocks):
            raise ValueError(
                f"step {step.step_id}: {len(counts)} block counts that sum to {counts.sum()} for "
                f"{len(slots)} rows and {len(blocks)} blocks"
            )
        if not len(blocks):
            return
        row_of_block = np.repeat(np.arange(len(slots)), counts)
        offsets = np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts, counts)
        slots_of_blocks = slots[row_of_block]
        self.tables[slots_of_blocks, self.table_lengths[slots_of_blocks] + offsets] = blocks
        self.table_lengths[slots] += counts

    def _columns(self, step: worker_pb2.StepRequest, rows: _Rows) -> dict[str, np.ndarray]:
        """Everything the device needs, as int64 columns."""
        row_of_token = np.repeat(np.arange(len(rows.slots)), rows.num_tokens)
        positions = np.arange(len(row_of_token)) + np.repeat(
            rows.positions - rows.first_token, rows.num_tokens
        )
        block, offset = np.divmod(positions, self.block_size)
        blocks = self.tables[rows.slots[row_of_token], block]
        given = np.zeros(len(positions), dtype=np.int64)
        given[step.num_decodes :] = np.array(step.token_ids, dtype=np.int64)
        lengths = rows.positions + rows.num_tokens
        num_blocks = -(-int(lengths.max()) // self.block_size) if len(lengths) else 0
        draw_slots = rows.slots[rows.draws]
        return {
            "positions": positions,
            "kv_slots": blocks * self.block_size + offset,
            "ids": given,
            "lengths": lengths,
            "decode_slots": rows.slots[: step.num_decodes],
            "tables": self.tables[rows.slots, :num_blocks],
            "last": (rows.first_token + rows.num_tokens - 1)[rows.draws],
            "draw_slots": draw_slots,
            "draw_positions": lengths[rows.draws],
            "draw_ints": self.params.ints[:, draw_slots],
            "draw_floats": self.params.floats[:, draw_slots].astype(np.float64).view(np.int64),
            "suppressed": self._suppressed(draw_slots, lengths[rows.draws]),
        }

    def _suppressed(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """``[2, P]`` pairs of (draw row, token id) that may not be drawn."""
        held = self.params.suppressions
        rows, ids = [], [np.empty(0, dtype=np.int64)]
        for row, slot in enumerate(slots.tolist() if held else ()):
            if slot in held and positions[row] < held[slot].until:
                rows.append(row)
                ids.append(held[slot].token_ids)
        repeats = [len(part) for part in ids[1:]]
        return np.stack([np.repeat(np.array(rows, dtype=np.int64), repeats), np.concatenate(ids)])

    def _assemble(
        self, step: worker_pb2.StepRequest, rows: _Rows, on: dict[str, torch.Tensor]
    ) -> DeviceBatch:
        ids_T = on["ids"]
        ids_T[: step.num_decodes] = self.last_token[on["decode_slots"]]
        attention = AttentionBatch(
            slots_T=on["kv_slots"],
            block_tables_SB=on["tables"],
            lengths=(rows.positions + rows.num_tokens).tolist(),
            lengths_S=on["lengths"],
            num_tokens=rows.num_tokens.tolist(),
            num_decodes=step.num_decodes,
        )
        forward = ForwardBatch(
            ids_T=ids_T,
            positions_T=on["positions"],
            attention=attention,
            max_tokens=step.max_replica_tokens,
        )
        return DeviceBatch(
            forward=forward,
            last_D=on["last"],
            draw_slots_D=on["draw_slots"],
            sampling=self._sampling(rows, on),
        )

    def _sampling(self, rows: _Rows, on: dict[str, torch.Tensor]) -> SamplingRows | None:
        slots = rows.slots[rows.draws]
        if not len(slots):
            return None
        temperature, top_p, min_p = self.params.floats[:, slots]
        random = temperature > 0
        filtered = (top_p < 1) | (min_p > 0) | (self.params.ints[0, slots] > 0)
        floats = on["draw_floats"].view(torch.float64).float()
        suppressed = on["suppressed"]
        return SamplingRows(
            temperature_D=floats[0],
            top_p_D=floats[1],
            min_p_D=floats[2],
            top_k_D=on["draw_ints"][0],
            seed_D=on["draw_ints"][1],
            sample_index_D=on["draw_ints"][2],
            position_D=on["draw_positions"],
            suppressed=(suppressed[0], suppressed[1]) if suppressed.shape[1] else None,
            any_random=bool(random.any()),
            any_filter=bool((random & filtered).any()),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a step: all int64 columns but ``draws``, a mask."""

    slots: np.ndarray
    positions: np.ndarray
    num_tokens: np.ndarray
    first_token: np.ndarray
    draws: np.ndarray

    @classmethod
    def from_step(cls, step: worker_pb2.StepRequest) -> _Rows:
        slots = np.array(step.slots, dtype=np.int64)
        decodes = step.num_decodes
        num_tokens = np.ones(len(slots), dtype=np.int64)
        draws = np.ones(len(slots), dtype=bool)
        if len(step.num_tokens) != len(slots) - decodes or len(step.draws) != len(slots) - decodes:
            raise ValueError(
                f"step {step.step_id}: {len(slots)} rows, {decodes} decodes, but "
                f"{len(step.num_tokens)} token counts and {len(step.draws)} draw marks"
            )
        num_tokens[decodes:] = np.array(step.num_tokens, dtype=np.int64)
        draws[decodes:] = np.array(step.draws, dtype=bool)
        if num_tokens.sum() != decodes + len(step.token_ids):
            raise ValueError(
                f"step {step.step_id}: {len(step.token_ids)} token ids, its rows ask for "
                f"{num_tokens.sum() - decodes}"
            )
        return cls(
            slots=slots,
            positions=np.array(step.positions, dtype=np.int64),
            num_tokens=num_tokens,
            first_token=np.cumsum(num_tokens) - num_tokens,
            draws=draws,
        )


class _Staging:
    """One pinned buffer and the event of its last copy; on CPU, plain arrays."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_cuda = device.type == "cuda"
        self.buffer = torch.empty(0, dtype=torch.int64)
        self.copied = torch.cuda.Event() if self.on_cuda else None

    def copy(self, columns: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """The columns as tensors on the device, views of one buffer."""
        if not self.on_cuda:
            return {
                name: torch.from_numpy(np.ascontiguousarray(column))
                for name, column in columns.items()
            }
        self.copied.synchronize()
        total = sum(column.size for column in columns.values())
        if self.buffer.numel() < total:
            self.buffer = torch.empty(2 * total, dtype=torch.int64, pin_memory=True)
        host = self.buffer.numpy()
        offset = 0
        for column in columns.values():
            host[offset : offset + column.size] = column.ravel()
            offset += column.size
        on_device = self.buffer[:total].to(self.device, non_blocking=True)
        self.copied.record()
        pieces = on_device.split([column.size for column in columns.values()])
        return {
            name: piece.view(column.shape)
            for (name, column), piece in zip(columns.items(), pieces, strict=True)
        }
