"""A request on its way through the steps: its tokens, and how far they are scheduled.

Holds its own slot and blocks, and checks the length. Knows no queue, no text and no other stop
condition.
"""

from __future__ import annotations

import enum

from frontend.errors import Code, RequestError
from frontend.prefixes import PrefixBlock
from frontend.requests.request import Request
from frontend.scheduler.kv_blocks import extend_prefixes
from frontend.scheduler.limits import SchedulerLimits


class Phase(enum.Enum):
    """Where a sequence is."""

    WAITING = enum.auto()
    """In the queue."""
    RUNNING = enum.auto()
    """Holds a slot and blocks."""
    PREEMPTED = enum.auto()
    """Gave up its blocks; it waits again once its results in flight have arrived."""
    DONE = enum.auto()
    """Over; results still in flight are dropped."""


class Sequence:
    """One request's tokens and progress.

    Attributes:
        order: grows with submission; the queue's order.
        tokens: prompt and generated tokens that are known.
        num_prompt: how many of them are the prompt's.
        crashes: losses of the workers while it was in flight, since its last new token.
        max_tokens: length at which it ends, prompt included.
        num_scheduled: leading positions whose KV is written by some step, sent or done. Once the
            prompt is scheduled each step draws a token, so ``num_scheduled + 1`` is the length
            that ``tokens`` will have when all steps in flight have answered.
        prefill_end: tokens known at admission: where prefill ends and the first draw happens.
        last_step: step of its newest row.
        blocks: its KV blocks of each group of layers, in order of position; FREED before those it
            holds.
        num_freed: how many are, of each group.
        unsent_blocks: blocks of each group that the workers do not know yet; its next row sends
            them.
        capacity: positions that its blocks hold, once its prompt is scheduled.
        prefixes: its leading full blocks, as far as they were needed.
        num_published: leading blocks that are in the prefix cache.
        from_state: the kept state that its next row begins from; -1: none.
        unseen_states: what it keeps that nobody can find yet, as positions and states.
        decoded: the prefix of the last one that was kept behind its output.
        leader: the sample of its call whose prompt must be computed before it is admitted, while it
            waits for that.
        has_yielded: it gave up its slot to another key, and waits in its own key's line.
    """

    __slots__ = (
        "blocks",
        "capacity",
        "crashes",
        "decoded",
        "from_state",
        "has_yielded",
        "last_step",
        "leader",
        "max_tokens",
        "num_freed",
        "num_prompt",
        "num_published",
        "num_scheduled",
        "order",
        "phase",
        "prefill_end",
        "prefixes",
        "replica",
        "request",
        "slot",
        "tokens",
        "unseen_states",
        "unsent_blocks",
    )

    def __init__(self, request: Request, order: int, max_model_len: int) -> None:
        stops = request.stops
        self.request = request
        self.order = order
        self.num_prompt = len(request.prompt_ids)
        self.tokens = [*request.prompt_ids, *request.generated]
        self.max_tokens = min(self.num_prompt + stops.max_new_tokens, max_model_len)
        self.phase = Phase.WAITING
        self.replica = -1
        self.slot = -1
        self.num_scheduled = 0
        self.prefill_end = 0
        self.last_step = 0
        self.blocks: list[list[int]] = []
        self.num_freed: list[int] = []
        self.unsent_blocks: list[list[int]] = []
        self.capacity = 0
        self.prefixes: list[PrefixBlock] = []
        self.num_published = 0
        self.from_state = -1
        self.decoded: PrefixBlock | None = None
        self.unseen_states: list[tuple[int, int]] = []
        self.crashes = 0
        self.leader: Sequence | None = None
        self.has_yielded = False

    def may_draw(self) -> bool:
        """Whether another draw may be scheduled while earlier ones are in flight.

        What a matcher allows next may depend on the last token, which must be known first.
        """
        matcher = self.request.matcher
        if matcher is not None:
            num_unknown = self.num_unknown
            if num_unknown and matcher.mask_ahead(num_unknown) is None:
                return False
        return self.num_scheduled + 1 < self.max_tokens

    @property
    def num_unknown(self) -> int:
        """Tokens that are drawn by steps in flight, once the prompt is scheduled."""
        return self.num_scheduled + 1 - len(self.tokens)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the prompt must be computed again for its log-probabilities."""
        request = self.request
        return request.sampling.prompt_logprobs and not request.num_generated

    def leading_blocks(self, num_blocks: int, block_size: int) -> list[PrefixBlock]:
        """The first ``num_blocks`` blocks, whose tokens are all known."""
        extend_prefixes(self.prefixes, self.tokens, num_blocks, block_size)
        return self.prefixes[:num_blocks]

    def suppression(self) -> tuple[list[int], int]:
        """Tokens that may not be drawn yet, ascending, and the first position where they may."""
        stops = self.request.stops
        if stops.min_new_tokens == 0:
            return [], 0
        end_ids = stops.eos_token_ids | stops.stop_token_ids
        return sorted(end_ids), self.num_prompt + stops.min_new_tokens

    def restart(self) -> None:
        """Forget slot, blocks and scheduled positions; the tokens stay."""
        self.phase = Phase.WAITING
        self.has_yielded = False
        self.replica = self.slot = -1
        self.num_scheduled = self.prefill_end = self.last_step = 0
        self.blocks, self.num_freed, self.unsent_blocks = [], [], []
        self.capacity = self.num_published = 0
        self.from_state, self.decoded = -1, None
        self.unseen_states = []


def check_fits(limits: SchedulerLimits, num_prompt: int, max_new_tokens: int) -> None:
    """Refuse a request that would not fit an empty cache; the last token needs no KV.

    Raises:
        RequestError: INVALID_ARGUMENT with the numbers.
    """
    assert 0 < num_prompt < limits.max_model_len, "refused where the prompt is encoded"
    groups = limits.groups
    num_cached = min(num_prompt + max_new_tokens, limits.max_model_len) - 1
    if groups.needed(num_cached) > limits.num_blocks:
        capacity = groups.longest(limits.num_blocks, limits.max_model_len)
        raise RequestError(
            Code.INVALID_ARGUMENT,
            f"prompt of {num_prompt} tokens and max_new_tokens "
            f"{max_new_tokens} need {num_cached} tokens of KV cache, which holds {capacity}; "
            "ask for fewer",
            reason="CACHE_EXCEEDED",
            field="stop_conditions.max_new_tokens",
            mentions={"max_new_tokens": "stop_conditions.max_new_tokens"},
        )
