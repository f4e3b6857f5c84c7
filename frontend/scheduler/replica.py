"""One replica's slots, KV blocks and running sequences, and how they fill its batch of a step.

Owns which sequences run here, their rows of a step, and the lengths of prompts' chunks. Knows
nothing of the queue, of other replicas, or of what ends a sequence.
"""

from __future__ import annotations

from frontend.requests.request import TriggeredMask
from frontend.scheduler.kv_blocks import BlockPool
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.sequence import Phase, Sequence
from frontend.scheduler.step import NewSequence, ReplicaBatch
from frontend.scheduler.token_budget import Budget


class Replica:
    """Running sequences, oldest admission first: those that decode, then those in prefill.

    All blocks of a prompt are taken at admission; later only decoding takes blocks, one at a time.
    """

    __slots__ = ("_decoding", "_free_slots", "_prefilling", "_reuses_prefixes", "index", "pool")

    def __init__(
        self, index: int, pool: BlockPool, *, num_slots: int, enable_prefix_cache: bool
    ) -> None:
        self.index = index
        self.pool = pool
        self._reuses_prefixes = enable_prefix_cache
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._decoding: list[Sequence] = []
        self._prefilling: list[Sequence] = []

    @property
    def num_running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._decoding) + len(self._prefilling)

    def running(self) -> list[Sequence]:
        """Sequences that hold a slot."""
        return self._decoding + self._prefilling

    @property
    def num_unscheduled(self) -> int:
        """Tokens of admitted prompts that are in no step yet."""
        return sum(seq.prefill_end - seq.num_scheduled for seq in self._prefilling)

    def match(self, sequence: Sequence) -> list[int]:
        """Blocks that already hold a prefix of the sequence, never all of it."""
        if not self._reuses_prefixes or sequence.wants_prompt_logprobs:
            return []
        pool = self.pool
        num_blocks = (len(sequence.tokens) - 1) // pool.block_size
        return pool.match(sequence.leading_blocks(num_blocks, pool.block_size))

    def has_room(self, sequence: Sequence, matched: list[int]) -> bool:
        """Whether a slot is free, and blocks for the sequence besides the matched ones.

        One free block stays behind for each running sequence, so that an admission is not undone
        by the next steps' decodes.
        """
        pool = self.pool
        if not self._free_slots:
            return False
        wanted = pool.blocks_for(len(sequence.tokens)) - len(matched)
        return pool.num_free - pool.num_idle(matched) - wanted >= self.num_running

    def admit(
        self,
        sequence: Sequence,
        matched: list[int],
        batch: ReplicaBatch,
        budget: Budget,
        step_id: int,
    ) -> None:
        """Give a sequence its slot and blocks, and a first row if the budget has room for it."""
        pool = self.pool
        pool.acquire(matched)
        allocated = pool.allocate(pool.blocks_for(len(sequence.tokens)) - len(matched))
        sequence.phase = Phase.RUNNING
        sequence.replica = self.index
        sequence.slot = self._free_slots.pop()
        sequence.blocks = sequence.unsent_blocks = matched + allocated
        sequence.capacity = len(sequence.blocks) * pool.block_size
        sequence.num_scheduled = len(matched) * pool.block_size
        sequence.num_published = len(matched)
        sequence.prefill_end = len(sequence.tokens)
        if sequence.wants_prompt_logprobs:
            sequence.request.prompt_logprobs.clear()  # those of an earlier admission
        batch.new_sequences.append(NewSequence.of(sequence))
        self._prefilling.append(sequence)
        self._add_chunk(sequence, batch, budget, step_id)

    def schedule_decodes(self, batch: ReplicaBatch, step_id: int) -> list[Sequence]:
        """Give every sequence that may draw a row of one token.

        Returns:
            Sequences that lost their slot and blocks because blocks ran out, newest first.
        """
        slots, positions, sequences = batch.slots, batch.positions, batch.sequences
        num_new_blocks, new_blocks = batch.num_new_blocks, batch.new_blocks
        pool = self.pool
        victims: list[Sequence] = []
        # A victim is the newest sequence, so it comes after the one at hand, or is that one itself.
        for sequence in self._decoding:
            if not sequence.may_draw():
                continue
            position = sequence.num_scheduled
            if position == sequence.capacity:
                self._make_room(sequence, victims)
                if sequence.phase is not Phase.RUNNING:
                    break
                block = pool.allocate(1)
                sequence.blocks += block
                sequence.capacity += pool.block_size
                new_blocks += block
                num_new_blocks.append(1)
            else:
                num_new_blocks.append(0)
            matcher = sequence.request.matcher
            if matcher is not None:
                num_unknown = sequence.num_unknown
                mask = matcher.mask_ahead(num_unknown) if num_unknown else None
                batch.mask_draw(len(slots), mask or TriggeredMask(matcher.mask(), -1))
            slots.append(sequence.slot)
            positions.append(position)
            sequences.append(sequence)
            sequence.num_scheduled = position + 1
            sequence.last_step = step_id
        batch.num_decodes = batch.total_tokens = batch.num_draws = len(slots)
        return victims

    def schedule_prefills(self, batch: ReplicaBatch, budget: Budget, step_id: int) -> None:
        """Give sequences in prefill their next tokens, oldest first, within the step's budget."""
        for sequence in self._prefilling.copy():
            if batch.total_tokens >= budget.tokens:
                break
            self._add_chunk(sequence, batch, budget, step_id)

    def release(self, sequence: Sequence) -> None:
        """Take back slot and blocks at once: workers run steps in order, so those already sent end
        before a step that uses the blocks again."""
        if sequence.num_scheduled < sequence.prefill_end:
            self._prefilling.remove(sequence)
        else:
            self._decoding.remove(sequence)
        self._free_slots.append(sequence.slot)
        self.pool.free(sequence.blocks)
        sequence.blocks, sequence.unsent_blocks = [], []
        sequence.capacity = 0
        sequence.replica = sequence.slot = -1

    def publish(self, sequence: Sequence, num_written: int) -> None:
        """Let later sequences find the full blocks among the first ``num_written`` positions.

        The KV of these positions is written, and their tokens are known.
        """
        if not self._reuses_prefixes:
            return
        pool = self.pool
        num_full = num_written // pool.block_size
        prefixes = sequence.leading_blocks(num_full, pool.block_size)
        for index in range(sequence.num_published, num_full):
            pool.publish(sequence.blocks[index], prefixes[index])
        sequence.num_published = max(sequence.num_published, num_full)

    def complete(self, batch: ReplicaBatch, tokens: list[int]) -> None:
        """Append to each sequence the token it drew, and publish the blocks that were written.

        Blocks that led to no token are not published: their KV may not be finite.

        Args:
            tokens: one per draw, in the order of the rows; negative: none.
        """
        block_size, num_decodes = self.pool.block_size, batch.num_decodes
        running, done = Phase.RUNNING, Phase.DONE
        # Decodes draw first, so the shorter list of rows ends the loop.
        for sequence, token in zip(batch.sequences[:num_decodes], tokens, strict=False):
            phase = sequence.phase
            if phase is done or token < 0:
                continue
            known = sequence.tokens
            if len(known) % block_size == 0 and phase is running:
                self.publish(sequence, len(known))
            known.append(token)
            sequence.crashes = 0
        drawn = iter(tokens[num_decodes:])
        rows = zip(
            batch.sequences[num_decodes:],
            batch.positions[num_decodes:],
            batch.num_tokens,
            batch.draws,
            strict=True,
        )
        for sequence, start, num_tokens, draws in rows:
            token = next(drawn) if draws else 0
            if sequence.phase is done or token < 0:
                continue
            if sequence.phase is running:
                self.publish(sequence, start + num_tokens)
            if draws:
                sequence.tokens.append(token)
                sequence.crashes = 0

    def _make_room(self, sequence: Sequence, victims: list[Sequence]) -> None:
        """Take the newest sequences' blocks until one is free; ``sequence`` may be the newest."""
        while self.pool.num_free == 0 and sequence.phase is Phase.RUNNING:
            victim = (self._prefilling or self._decoding)[-1]
            self.release(victim)
            victim.phase = Phase.PREEMPTED
            victims.append(victim)

    def _add_chunk(
        self, sequence: Sequence, batch: ReplicaBatch, budget: Budget, step_id: int
    ) -> None:
        """Add a row with the prompt's next tokens, if the budget has room; its last row draws."""
        room = budget.tokens - batch.total_tokens
        is_long = sequence.prefill_end > budget.long_prompt
        if is_long:
            room = min(room, budget.long_chunk - batch.long_tokens)
        if room <= 0:
            return
        start = sequence.num_scheduled
        end = min(start + room, sequence.prefill_end)
        blocks, sequence.unsent_blocks = sequence.unsent_blocks, []
        draws = end == sequence.prefill_end
        batch.slots.append(sequence.slot)
        batch.positions.append(start)
        batch.num_tokens.append(end - start)
        batch.token_ids += sequence.tokens[start:end]
        batch.draws.append(draws)
        batch.num_new_blocks.append(len(blocks))
        batch.new_blocks += blocks
        batch.sequences.append(sequence)
        batch.total_tokens += end - start
        batch.long_tokens += (end - start) * is_long
        matcher = sequence.request.matcher
        if draws and matcher is not None:
            batch.mask_draw(batch.num_draws, TriggeredMask(matcher.mask(), -1))
        batch.num_draws += draws
        sequence.num_scheduled = end
        sequence.last_step = step_id
        if draws:
            self._prefilling.remove(sequence)
            self._decoding.append(sequence)


BUSIER_SHARE = 8
"""A replica is clearly busier when it runs max_batch_size / BUSIER_SHARE more than another."""


def make_replicas(limits: SchedulerLimits) -> list[Replica]:
    """Empty replicas, as many as the limits say."""
    return [
        Replica(
            index,
            BlockPool(limits.num_blocks, limits.block_size),
            num_slots=limits.max_batch_size,
            enable_prefix_cache=limits.enable_prefix_cache,
        )
        for index in range(limits.num_replicas)
    ]


def choose_replica(
    replicas: list[Replica],
    batches: list[ReplicaBatch],
    sequence: Sequence,
    limits: SchedulerLimits,
) -> tuple[Replica, list[int]] | None:
    """Of the replicas with room choose the one with the longest prefix, unless clearly busier.

    Args:
        batches: of the step that is being made, one per replica.

    Returns:
        The replica, and its blocks that hold a prefix of the sequence; None: no replica has room.
    """
    budget = limits.max_num_batched_tokens
    choices = []
    for replica, batch in zip(replicas, batches, strict=True):
        if batch.total_tokens < budget:
            matched = replica.match(sequence)
            if replica.has_room(sequence, matched):
                choices.append((replica, matched))
    if not choices:
        return None
    slack = max(1, limits.max_batch_size // BUSIER_SHARE)
    max_running = min(replica.num_running for replica, _ in choices) + slack
    fair = [choice for choice in choices if choice[0].num_running <= max_running]
    return min(fair, key=lambda choice: (-len(choice[1]), choice[0].num_running))
