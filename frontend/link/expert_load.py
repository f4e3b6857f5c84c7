"""How evenly tokens spread over the experts: the ranks' counts, added up.

Owns the measure of imbalance, and how often the workers are queried. Knows nothing of how ranks are
reached. L sparse layers, E experts.
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

MIN_QUERY_INTERVAL_SECONDS = 1.0
Counts = Sequence[worker_pb2.GetExpertLoadResponse]


class ExpertLoadPoller:
    """The newest counts, queried at most once a second however many callers want them.

    Args:
        counts: queries all ranks; returns in rank order, raises `GroupLost` when there are none.
        num_ranks: ranks over which the experts are spread.
    """

    def __init__(self, counts: Callable[[], Awaitable[Counts]], num_ranks: int) -> None:
        self._counts = counts
        self._num_ranks = num_ranks
        self._querying = asyncio.Lock()
        self._queried = float("-inf")
        self._latest = pb.GetExpertLoadResponse()

    async def get(self) -> pb.GetExpertLoadResponse:
        """Tokens of every expert and the imbalance of every layer; no layers for a dense model.

        Raises:
            RequestError: UNAVAILABLE while there are no workers.
        """
        async with self._querying:
            if time.monotonic() - self._queried >= MIN_QUERY_INTERVAL_SECONDS:
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
                self._queried = time.monotonic()
        return self._latest


def add_up(counts: Counts, num_ranks: int) -> pb.GetExpertLoadResponse:
    """All ranks' counts as one message.

    Args:
        counts: one per rank; ``tokens`` is [L·E], layer by layer.
        num_ranks: ranks over which the experts are spread.
    """
    first = counts[0]
    totals_LE = [sum(tokens) for tokens in zip(*(each.tokens for each in counts), strict=True)]
    num_experts = first.num_experts
    load = pb.GetExpertLoadResponse()
    for index, layer in enumerate(first.layers):
        tokens_E = totals_LE[index * num_experts : (index + 1) * num_experts]
        load.layers.add(layer=layer, tokens=tokens_E, imbalance=imbalance(tokens_E, num_ranks))
    return load


def imbalance(tokens_E: Sequence[int], num_ranks: int) -> float:
    """The most tokens of any rank over the mean of the ranks; 1.0 is even, or no tokens."""
    total = sum(tokens_E)
    if not total:
        return 1.0
    starts = expert_starts(len(tokens_E), num_ranks)
    busiest = max(sum(tokens_E[a:b]) for a, b in itertools.pairwise(starts))
    return busiest * num_ranks / total
