"""How evenly the experts are asked for: the ranks' counts, added up.

Owns the measure of imbalance, and how often the workers are asked. Knows nothing of how ranks are
reached; what each of them counts adds up, worker.proto says. L sparse layers, E experts.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence

from frontend.errors import Code, RequestError
from frontend.link.rank_channel import GroupLost
from switchyard.v1 import inference_pb2 as pb
from switchyard.worker.link import expert_starts
from switchyard.worker.v1 import worker_pb2

MIN_SECONDS_BETWEEN_ASKING = 1.0
Counts = Sequence[worker_pb2.GetExpertLoadResponse]


class ExpertLoad:
    """The newest counts, asked for at most once a second however many want them.

    Args:
        counts: asks all ranks, in rank order; raises `GroupLost` when there are none.
        num_ranks: over which the experts are spread.
    """

    def __init__(self, counts: Callable[[], Awaitable[Counts]], num_ranks: int) -> None:
        self._counts = counts
        self._num_ranks = num_ranks
        self._asking = asyncio.Lock()
        self._asked = float("-inf")
        self._latest = pb.GetExpertLoadResponse()

    async def get(self) -> pb.GetExpertLoadResponse:
        """Tokens of every expert and the imbalance of every layer; no layers for a dense model.

        Raises:
            RequestError: UNAVAILABLE; the workers are not there.
        """
        async with self._asking:
            if time.monotonic() - self._asked >= MIN_SECONDS_BETWEEN_ASKING:
                try:
                    counts = await self._counts()
                except GroupLost as error:
                    raise RequestError(
                        Code.UNAVAILABLE,
                        "the workers are not there to be asked; try again in a moment",
                        reason="RESTARTING",
                        retry_after=1.0,
                    ) from error
                self._latest = add_up(counts, self._num_ranks)
                self._asked = time.monotonic()
        return self._latest


def add_up(counts: Counts, num_ranks: int) -> pb.GetExpertLoadResponse:
    """One message of all ranks' counts.

    Args:
        counts: one a rank; ``tokens`` is [L·E], layer by layer.
        num_ranks: over which the experts are spread.
    """
    first = counts[0]
    totals_LE = [sum(tokens) for tokens in zip(*(each.tokens for each in counts), strict=True)]
    num_experts = first.num_experts
    answer = pb.GetExpertLoadResponse()
    for index, layer in enumerate(first.layers):
        tokens_E = totals_LE[index * num_experts : (index + 1) * num_experts]
        answer.layers.add(layer=layer, tokens=tokens_E, imbalance=imbalance(tokens_E, num_ranks))
    return answer


def imbalance(tokens_E: Sequence[int], num_ranks: int) -> float:
    """Tokens of the rank with most over the mean of the ranks; 1.0 is even, or without any."""
    total = sum(tokens_E)
    if not total:
        return 1.0
    starts = expert_starts(len(tokens_E), num_ranks)
    most = max(sum(tokens_E[a:b]) for a, b in itertools.pairwise(starts))
    return most * num_ranks / total
