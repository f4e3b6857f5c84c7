"""The calls that are under way, by request id.

Owns that an id is live once, and the pace of those that stream. Knows nothing of what a call asks.
"""

from __future__ import annotations

import asyncio

from frontend.errors import duplicate_id
from frontend.requests.pacing import Pacer
from frontend.service.call import Call


class LiveCalls:
    """All that have entered and not left.

    Attributes:
        pacer: says how often their streams may write.
    """

    def __init__(self) -> None:
        self.pacer = Pacer()
        self._calls: dict[str, Call] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self, call: Call) -> None:
        """Make a call's id live.

        Raises:
            RequestError: ALREADY_EXISTS, it is.
        """
        if call.request_id in self._calls:
            raise duplicate_id(call.request_id)
        self._calls[call.request_id] = call
        self._idle.clear()
        if not call.whole:
            self.pacer.enter()

    def leave(self, call: Call) -> None:
        """Its id may be used again, and perhaps is already; a call may leave twice."""
        if self._calls.get(call.request_id) is call:
            del self._calls[call.request_id]
            if not call.whole:
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
        """Those that are live now."""
        return tuple(self._calls.values())

    async def idle(self) -> None:
        """Wait until none is live."""
        await self._idle.wait()
