"""The calls that are live, by request id, and how many of them an API key has.

Owns that an id is live once, the bound of a key, and the pace of the calls that stream. Knows
nothing of what a call does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from frontend.errors import Code, RequestError, duplicate_id
from frontend.requests.pacing import Pacer
from frontend.service.call import Call

KEY_LIMIT_RETRY_SECONDS = 1.0


class LiveCalls:
    """The calls that have entered and not left.

    Attributes:
        pacer: says how often their streams may write.
    """

    def __init__(self) -> None:
        self.pacer = Pacer()
        self._calls: dict[str, Call] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self, call: Call) -> None:
        """Makes a call's id live.

        Raises:
            RequestError: ALREADY_EXISTS; the id is live.
        """
        if call.request_id in self._calls:
            raise duplicate_id(call.request_id)
        self._calls[call.request_id] = call
        self._idle.clear()
        if call.streams:
            self.pacer.enter()

    def leave(self, call: Call) -> None:
        """Frees a call's id, if it is still this call's; a call may leave twice."""
        if self._calls.get(call.request_id) is call:
            del self._calls[call.request_id]
            if call.streams:
                self.pacer.leave()
        if not self._calls:
            self._idle.set()

    def get(self, request_id: str) -> Call | None:
        """The live call of an id."""
        return self._calls.get(request_id)

    def __len__(self) -> int:
        """How many are live."""
        return len(self._calls)

    def all(self) -> tuple[Call, ...]:
        """The calls that are live now."""
        return tuple(self._calls.values())

    async def idle(self) -> None:
        """Wait until none is live."""
        await self._idle.wait()


class KeyLimit:
    """Bounds the live requests of each key.

    Args:
        limit: live requests of one key; 0 is any number. Callers without a key have no bound.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._live: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, key: str) -> Iterator[None]:
        """Counts one request of ``key`` as live while the block runs.

        Raises:
            RequestError: RESOURCE_EXHAUSTED; the key is at its limit.
        """
        if not self.limit or not key:
            yield
            return
        if self._live[key] >= self.limit:
            raise RequestError(
                Code.RESOURCE_EXHAUSTED,
                f"key {key} has {self._live[key]} live requests, and may have {self.limit}; "
                "wait for one to end",
                reason="KEY_LIMIT",
                retry_after=KEY_LIMIT_RETRY_SECONDS,
            )
        self._live[key] += 1
        try:
            yield
        finally:
            self._live[key] -= 1
            if not self._live[key]:
                del self._live[key]
