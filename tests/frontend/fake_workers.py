"""Workers that play a deterministic model and check every step against worker.proto.

The model's next token depends on all tokens before it, read back through the block tables: a cache
entry is the digest of the whole prefix it ends, so a wrong block, slot or position is noticed. Each
group of layers has entries of its own, and of one with a window only those that a query sees are
read. The states of layers that keep some are such digests too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
from collections import deque

from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.step import Drawn, NewSequence, ReplicaBatch, Step, StepResults, StepStats

VOCAB = 50


@functools.lru_cache(maxsize=1 << 16)  # every step asks for those of all positions before
def chain(parent: bytes, token: int) -> bytes:
    return hashlib.blake2b(parent + token.to_bytes(4, "little"), digest_size=8).digest()


def draw(prefix: bytes, seed: int, banned: set[int]) -> int:
    """The model: next token after the prefix of this digest."""
    token = hashlib.blake2b(prefix + seed.to_bytes(8, "little"), digest_size=4).digest()[0] % VOCAB
    while token in banned:
        token = (token + 1) % VOCAB
    return token


def run_alone(
    prompt: list[int], seed: int, max_tokens: int, end_ids: set[int], min_new_tokens: int
) -> list[int]:
    """Output of one request with nothing around it: the oracle."""
    prefix = b""
    for token in prompt:
        prefix = chain(prefix, token)
    output: list[int] = []
    while len(prompt) + len(output) < max_tokens:
        banned = end_ids if len(output) < min_new_tokens else set()
        token = draw(prefix, seed, banned)
        output.append(token)
        if token in end_ids:
            break
        prefix = chain(prefix, token)
    return output


@dataclasses.dataclass
class _Slot:
    new: NewSequence
    tables: list[list[int]]
    next_position: int | None = None
    last_token: int | None = None
    state: bytes = b""


class FakeReplica:
    """One replica: KV cache, block tables, last tokens."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        # The group, token and prefix of what stands at a place of a block.
        self.cache: dict[tuple[int, int], tuple[int, int, bytes]] = {}
        self.slots: dict[int, _Slot] = {}
        self.kept_states: dict[int, bytes] = {}

    def run(self, batch: ReplicaBatch) -> list[int]:
        rows = len(batch.slots)
        num_groups = len(self.limits.windows)
        assert len(batch.positions) == rows
        assert len(batch.num_new_blocks) == rows * num_groups
        assert len(batch.num_tokens) == len(batch.draws) == rows - batch.num_decodes
        assert len(set(batch.slots)) == rows, "a slot has two rows"
        assert sum(batch.num_new_blocks) == len(batch.new_blocks)
        assert sum(batch.num_tokens) == len(batch.token_ids)
        assert batch.total_tokens == batch.num_decodes + len(batch.token_ids)
        assert batch.total_tokens <= self.limits.max_num_batched_tokens
        for new in batch.new_sequences:
            assert 0 <= new.slot < self.limits.max_batch_size
            self.slots[new.slot] = _Slot(new, [[] for _ in range(num_groups)])
        token_ids, new_blocks = deque(batch.token_ids), deque(batch.new_blocks)
        counts = deque(batch.num_new_blocks)
        keeps = self._keeps(batch)
        drawn = []
        for row in range(rows):
            slot = self.slots[batch.slots[row]]
            for table in slot.tables:
                table += [new_blocks.popleft() for _ in range(counts.popleft())]
                assert all(0 <= block < self.limits.num_blocks for block in table)
            self._check_tables(slot, batch.positions[row])
            index = row - batch.num_decodes
            if index < 0:
                assert slot.last_token is not None, "a decode without a drawn token"
                tokens, draws = [slot.last_token], True
            else:
                assert batch.num_tokens[index] > 0
                tokens = [token_ids.popleft() for _ in range(batch.num_tokens[index])]
                draws = batch.draws[index]
            prefix = self._write(slot, batch.positions[row], tokens, *keeps.get(row, (0, -1)))
            if draws:
                slot.last_token = self._draw(slot, prefix)
                drawn.append(slot.last_token)
        return drawn

    def _keeps(self, batch: ReplicaBatch) -> dict[int, tuple[int, int]]:
        """By row the position behind which a state is kept, and as which."""
        assert batch.keep_rows == sorted(set(batch.keep_rows))
        assert len(set(batch.keep_states)) == len(batch.keep_states)
        assert all(0 <= each < self.limits.num_kept_states for each in batch.keep_states)
        pairs = zip(batch.keep_positions, batch.keep_states, strict=True)
        return dict(zip(batch.keep_rows, pairs, strict=True))

    def _write(
        self, slot: _Slot, position: int, tokens: list[int], keep_position: int, keep_state: int
    ) -> bytes:
        """Read all positions before, write these; returns the digest of the whole prefix."""
        if slot.next_position is None:
            assert position % self.limits.block_size == 0, "reuse is of whole blocks"
            if self.limits.state_interval and slot.new.from_state >= 0:
                slot.state = self.kept_states[slot.new.from_state]
        else:
            assert position == slot.next_position, "positions have a gap"
        prefixes = [self._read(slot, group, position) for group in range(len(slot.tables))]
        # A window of 1 sees no key before its query's own.
        (prefix,) = {each for each in prefixes if each is not None}
        if self.limits.state_interval:
            assert slot.state == prefix, "a state of another prefix"
        if keep_state >= 0:
            assert position < keep_position <= position + len(tokens)
            assert keep_position % self.limits.state_interval == 0
        for offset, token in enumerate(tokens):
            prefix = chain(prefix, token)
            if keep_state >= 0 and position + offset + 1 == keep_position:
                self.kept_states[keep_state] = prefix
            for group in range(len(slot.tables)):
                self.cache[self._where(slot, group, position + offset)] = (group, token, prefix)
        slot.next_position = position + len(tokens)
        slot.state = prefix
        assert slot.next_position < self.limits.max_model_len
        return prefix

    def _read(self, slot: _Slot, group: int, position: int) -> bytes | None:
        """Of all that a query at ``position`` sees before it, the digest of the whole prefix."""
        prefix = b"" if position == 0 else None
        first = self._first_seen(group, position)
        entries = self._entries(slot, group, first, position)
        for place, (of_group, token, digest) in enumerate(entries, start=first):
            assert of_group == group, f"position {place} is another group's"
            if prefix is None and place == 0:
                prefix = b""
            if prefix is not None:
                assert digest == chain(prefix, token), f"position {place} was overwritten"
            prefix = digest
        return prefix

    def _first_seen(self, group: int, position: int) -> int:
        window = self.limits.windows[group]
        return max(0, position - window + 1) if window else 0

    def _check_tables(self, slot: _Slot, position: int) -> None:
        """No block is twice in what the tables of a sequence have from what is seen on."""
        size = self.limits.block_size
        seen = [
            block
            for group, table in enumerate(slot.tables)
            for block in table[self._first_seen(group, position) // size :]
        ]
        assert len(set(seen)) == len(seen), "a table has a block twice"

    def _entries(
        self, slot: _Slot, group: int, first: int, end: int
    ) -> list[tuple[int, int, bytes]]:
        """What the cache has of a sequence's positions from ``first`` on, before ``end``."""
        table, size, cache = slot.tables[group], self.limits.block_size, self.cache
        return [cache[table[place // size], place % size] for place in range(first, end)]

    def _where(self, slot: _Slot, group: int, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self.limits.block_size)
        return slot.tables[group][index], offset

    def _draw(self, slot: _Slot, prefix: bytes) -> int:
        assert slot.next_position is not None
        suppressed = slot.next_position < slot.new.suppress_until
        assert slot.new.suppressed_token_ids == sorted(slot.new.suppressed_token_ids)
        banned = set(slot.new.suppressed_token_ids) if suppressed else set()
        sampling = getattr(slot.new, "sampling", slot.new)  # a message has it all at one level
        return draw(prefix, sampling.seed, banned)


class FakeWorkers:
    """All replicas; ``run`` executes a step, as the workers do: in order, once each."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.replicas = [FakeReplica(limits) for _ in range(limits.num_replicas)]
        self.last_step = 0
        self.steps: list[Step] = []

    def run(self, step: Step) -> list[Drawn]:
        assert step.step_id == self.last_step + 1
        assert len(step.batches) == len(self.replicas)
        assert step.max_replica_tokens == max(batch.total_tokens for batch in step.batches) > 0
        self.last_step = step.step_id
        self.steps.append(step)
        columns = zip(self.replicas, step.batches, strict=True)
        return [Drawn(tokens=replica.run(batch)) for replica, batch in columns]


class FakeGroup:
    """The engine's view of `FakeWorkers`: answers come a little later.

    Attributes:
        stats: what every step that is sent from now on reports.
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self.workers = FakeWorkers(limits)
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.max_in_flight = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.stats = StepStats()
        self._answers: deque[StepResults] = deque()

    def lose(self, cause: str) -> None:
        self.lost.set_result(ConnectionError(cause))

    async def send(self, step: Step) -> None:
        self._answers.append(StepResults(self.workers.run(step), self.stats))
        self.max_in_flight = max(self.max_in_flight, len(self._answers))

    async def receive(self) -> StepResults:
        await asyncio.sleep(0)
        opened = asyncio.ensure_future(self.gate.wait())
        await asyncio.wait([opened, self.lost], return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        if self.lost.done():
            raise self.lost.result()
        return self._answers.popleft()
