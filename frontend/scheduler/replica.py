"""One replica's slots, KV blocks and running sequences, and how they fill its batch of a step.

Owns which sequences run here, their rows of a step, the lengths of prompts' chunks, and when blocks
behind a window are freed. Knows nothing of the queue, of other replicas, or what ends a sequence.
"""

from __future__ import annotations

from frontend.cache_groups import CacheGroups
from frontend.requests.request import TriggeredMask
from frontend.scheduler.kept_states import KeptStates
from frontend.scheduler.kv_blocks import FREED, BlockPool
from frontend.scheduler.prefix_match import Matched, longest_match, no_match
from frontend.scheduler.sequence import Phase, Sequence
from frontend.scheduler.step import NewSequence, ReplicaBatch
from frontend.scheduler.token_budget import Budget


class Replica:
    """Running sequences, oldest admission first: those that decode, then those in prefill.

    In groups of layers without a window all blocks of a prompt are taken at admission, and later
    only decoding takes blocks, one at a time. With a window a prompt's blocks are taken as its
    chunks are scheduled, and freed behind the window once they are written; what chunks to come may
    take is left free by all others.
    """

    __slots__ = (
        "_decoding",
        "_free_slots",
        "_groups",
        "_keeps",
        "_prefilling",
        "_reuses_prefixes",
        "_windowed",
        "index",
        "pool",
        "states",
    )

    def __init__(
        self,
        index: int,
        pool: BlockPool,
        groups: CacheGroups,
        *,
        num_slots: int,
        enable_prefix_cache: bool,
        states: KeptStates | None = None,
    ) -> None:
        self.index = index
        self.pool = pool
        self._groups = groups
        self._windowed = [group for group, window in enumerate(groups.windows) if window]
        self._reuses_prefixes = enable_prefix_cache
        self.states = states
        self._keeps = states if enable_prefix_cache else None
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

    def match(self, sequence: Sequence) -> Matched:
        """Blocks that already hold a prefix of the sequence, never all of it."""
        if not self._reuses_prefixes or sequence.wants_prompt_logprobs:
            return no_match(self._groups)
        pool = self.pool
        num_blocks = (len(sequence.tokens) - 1) // pool.block_size
        prefixes = sequence.leading_blocks(num_blocks, pool.block_size)
        matched = longest_match(pool, self._groups, prefixes)
        if self._keeps is None:
            return matched
        # A sequence goes on where there are blocks and a state.
        while len(matched[0]) > (count := self._keeps.longest(prefixes[: len(matched[0])])):
            matched = longest_match(pool, self._groups, prefixes[:count])
        return matched

    def has_room(self, sequence: Sequence, matched: Matched) -> bool:
        """Whether a slot is free, and blocks for the sequence besides the matched ones.

        A free block of each group stays behind for each running sequence, so that an admission is
        not undone by the next steps' decodes.
        """
        pool = self.pool
        if not self._free_slots:
            return False
        num_tokens = len(sequence.tokens)
        free = pool.num_free - self._num_reserved()
        for group, blocks in enumerate(matched):
            free -= pool.num_idle(blocks)
            free -= self._num_to_take(group, num_tokens, len(blocks), blocks.count(FREED))
        return free >= self.num_running * len(matched)

    def admit(
        self,
        sequence: Sequence,
        matched: Matched,
        batch: ReplicaBatch,
        budget: Budget,
        step_id: int,
    ) -> None:
        """Give a sequence its slot and blocks, and a first row if the budget has room for it."""
        pool, num_matched = self.pool, len(matched[0])
        num_blocks = self._groups.blocks_for(len(sequence.tokens))
        for blocks in matched:
            pool.acquire(blocks)
        held = [blocks.copy() for blocks in matched]
        for blocks, window in zip(held, self._groups.windows, strict=True):
            if not window:
                blocks += pool.allocate(num_blocks - num_matched)
        sequence.phase = Phase.RUNNING
        sequence.replica = self.index
        sequence.slot = self._free_slots.pop()
        sequence.blocks = held
        sequence.num_freed = [blocks.count(FREED) for blocks in matched]
        sequence.unsent_blocks = [blocks.copy() for blocks in held]
        sequence.capacity = num_blocks * pool.block_size
        sequence.num_scheduled = num_matched * pool.block_size
        sequence.num_published = num_matched
        if self._keeps is not None:
            self._keeps.begin(sequence, num_matched)
        sequence.prefill_end = len(sequence.tokens)
        if sequence.wants_prompt_logprobs:
            sequence.request.prompt_logprobs.clear()  # those of an earlier admission
        batch.new_sequences.append(NewSequence.of(sequence))
        self._prefilling.append(sequence)
        victims = self._add_chunk(sequence, batch, budget, step_id)
        assert not victims, "the newest sequence takes no other's blocks"

    def schedule_decodes(self, batch: ReplicaBatch, step_id: int) -> list[Sequence]:
        """Give every sequence that may draw a row of one token.

        Returns:
            Sequences that lost their slot and blocks because blocks ran out, newest first.
        """
        slots, positions, sequences = batch.slots, batch.positions, batch.sequences
        num_new_blocks, new_blocks = batch.num_new_blocks, batch.new_blocks
        pool, num_groups = self.pool, len(self._groups.windows)
        none, one_each = [0] * num_groups, [1] * num_groups
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
                for blocks, block in zip(sequence.blocks, pool.allocate(num_groups), strict=True):
                    blocks.append(block)
                    new_blocks.append(block)
                sequence.capacity += pool.block_size
                num_new_blocks += one_each
            else:
                num_new_blocks += none
            if self._keeps is not None:
                self._keeps.keep(sequence, position, position + 1, batch)
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

    def schedule_prefills(
        self, batch: ReplicaBatch, budget: Budget, step_id: int
    ) -> list[Sequence]:
        """Give sequences in prefill their next tokens, oldest first, within the step's budget.

        Returns:
            As `schedule_decodes`; they are in prefill, and have no row in this step.
        """
        victims: list[Sequence] = []
        for sequence in self._prefilling.copy():
            if batch.total_tokens >= budget.tokens:
                break
            if sequence.phase is Phase.RUNNING:
                victims += self._add_chunk(sequence, batch, budget, step_id)
        return victims

    def release(self, sequence: Sequence) -> None:
        """Take back slot and blocks at once: workers run steps in order, so those already sent end
        before a step that uses the blocks again."""
        if sequence.num_scheduled < sequence.prefill_end:
            self._prefilling.remove(sequence)
        else:
            self._decoding.remove(sequence)
        self._free_slots.append(sequence.slot)
        for blocks in sequence.blocks:
            self.pool.free(blocks)
        if self._keeps is not None:
            self._keeps.release(sequence)
        sequence.blocks, sequence.num_freed, sequence.unsent_blocks = [], [], []
        sequence.capacity = 0
        sequence.replica = sequence.slot = -1

    def publish(self, sequence: Sequence, num_written: int) -> None:
        """Let later sequences find the full blocks among the first ``num_written`` positions, and
        free those of them that are behind a window.

        The KV of these positions is written, and their tokens are known.
        """
        pool = self.pool
        num_full = num_written // pool.block_size
        if self._reuses_prefixes:
            prefixes = sequence.leading_blocks(num_full, pool.block_size)
            for index in range(sequence.num_published, num_full):
                for group, blocks in enumerate(sequence.blocks):
                    pool.publish(blocks[index], prefixes[index], group)
            sequence.num_published = max(sequence.num_published, num_full)
        if self._keeps is not None:
            self._keeps.publish(sequence, num_written)
        for group in self._windowed:
            self._free_behind(sequence, group, num_full)

    def _free_behind(self, sequence: Sequence, group: int, num_full: int) -> None:
        """Free what no step to come of a sequence sees; those that were sent end before a step that
        uses the blocks again, as in `release`."""
        first_seen = self._groups.first_seen(group, sequence.num_scheduled)
        first, stop = sequence.num_freed[group], min(num_full, first_seen)
        if first < stop:
            blocks = sequence.blocks[group]
            self.pool.free(blocks[first:stop])
            blocks[first:stop] = [FREED] * (stop - first)
            sequence.num_freed[group] = stop

    def _num_to_take(self, group: int, num_tokens: int, num_listed: int, num_freed: int) -> int:
        """Blocks that a prompt of so many tokens may take beyond those listed, of which the first
        are freed."""
        groups = self._groups
        left = groups.blocks_for(num_tokens) - num_listed
        held = num_listed - num_freed
        return min(left, groups.most_blocks(group, num_tokens) - held)

    def _num_reserved(self) -> int:
        """Blocks that prompts here may take, all together: all others leave them free."""
        return sum(
            self._num_to_take(
                group, each.prefill_end, len(each.blocks[group]), each.num_freed[group]
            )
            for group in self._windowed
            for each in self._prefilling
        )

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
        """Take the newest sequences' blocks until one is free for each group; ``sequence`` may be
        the newest."""
        wanted = len(self._groups.windows)
        while (
            self.pool.num_free - self._num_reserved() < wanted and sequence.phase is Phase.RUNNING
        ):
            victims.append(self._preempt_newest())

    def _preempt_newest(self) -> Sequence:
        victim = (self._prefilling or self._decoding)[-1]
        self.release(victim)
        victim.phase = Phase.PREEMPTED
        return victim

    def _take_blocks(self, sequence: Sequence, end: int, victims: list[Sequence]) -> int:
        """Take a prompt's blocks up to position ``end`` in groups with a window.

        A sequence holds no more than its share, and waits for steps in flight where it is used up.
        Where blocks have run out all the same (what is freed may be another's too) the oldest
        prompt takes those of the newest, and any other waits.

        Returns:
            The position up to which there are blocks: ``end`` or less.
        """
        pool, size = self.pool, self.pool.block_size
        listed = len(sequence.blocks[self._windowed[0]])
        may_take = min(
            self._num_to_take(group, sequence.prefill_end, listed, sequence.num_freed[group])
            for group in self._windowed
        )
        wanted = min(self._groups.blocks_for(end) - listed, may_take)
        is_oldest = sequence is self._prefilling[0]
        if wanted > 0 and listed * size == sequence.num_scheduled and is_oldest:
            while pool.num_free < len(self._windowed) and len(self._prefilling) > 1:
                victims.append(self._preempt_newest())
        wanted = max(0, min(wanted, pool.num_free // len(self._windowed)))
        for group in self._windowed:
            taken = pool.allocate(wanted)
            sequence.blocks[group] += taken
            sequence.unsent_blocks[group] += taken
        return min(end, (listed + wanted) * size)

    def _add_chunk(
        self, sequence: Sequence, batch: ReplicaBatch, budget: Budget, step_id: int
    ) -> list[Sequence]:
        """Add a row with the prompt's next tokens, if the budget and the cache have room; its last
        row draws.

        Returns:
            Sequences that lost their blocks to it.
        """
        victims: list[Sequence] = []
        room = budget.tokens - batch.total_tokens
        is_long = sequence.prefill_end > budget.long_prompt
        if is_long:
            room = min(room, budget.long_chunk - batch.long_tokens)
        if room <= 0:
            return victims
        start = sequence.num_scheduled
        end = min(start + room, sequence.prefill_end)
        if self._windowed:
            end = self._take_blocks(sequence, end, victims)
            if end <= start:
                return victims
        draws = end == sequence.prefill_end
        if self._keeps is not None:
            self._keeps.begun(sequence)
            self._keeps.keep(sequence, start, end, batch)
        batch.slots.append(sequence.slot)
        batch.positions.append(start)
        batch.num_tokens.append(end - start)
        batch.token_ids += sequence.tokens[start:end]
        batch.draws.append(draws)
        for blocks in sequence.unsent_blocks:
            batch.num_new_blocks.append(len(blocks))
            batch.new_blocks += [max(block, 0) for block in blocks]  # any id stands for FREED
            blocks.clear()
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
        return victims
