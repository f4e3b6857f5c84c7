"""Who compiles now and who waits: so many at once, and one key leaves half to others.

Owns the counts and the order. Knows nothing of constraints.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter

from frontend.bounds import COMPILE_WAIT_SECONDS, MAX_COMPILES, MAX_WAITING_COMPILES
from frontend.errors import Code, RequestError

_RETRY_AFTER_SECONDS = 1.0


@dataclasses.dataclass(eq=False, slots=True)
class _Waiting:
    key: str
    turn: asyncio.Future[None]


class CompileSlots:
    """Slots for `MAX_COMPILES`; a key that is named has half of them and of the places to wait.

    A slot that comes free goes to the key that has the fewest, among these to whoever came first.
    """

    def __init__(self) -> None:
        self._taken = Counter[str]()
        self._waiting: list[_Waiting] = []

    @property
    def num_taken(self) -> int:
        return self._taken.total()

    async def take(self, key: str) -> None:
        """Wait for a slot; `give` returns it.

        Raises:
            RequestError: RESOURCE_EXHAUSTED, too many wait, or none came free in time.
        """
        if self._is_free(key):
            self._taken[key] += 1
            return
        of_key = sum(waiting.key == key for waiting in self._waiting)
        if len(self._waiting) >= MAX_WAITING_COMPILES or (
            key and of_key >= MAX_WAITING_COMPILES // 2
        ):
            raise _exhausted(
                f"{len(self._waiting)} constraints wait to be compiled, {of_key} of this key"
            )
        waiting = _Waiting(key, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(COMPILE_WAIT_SECONDS):
                await waiting.turn
        except BaseException as error:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:  # the slot came at the same time
                self.give(key)
            if isinstance(error, TimeoutError):
                raise _exhausted(
                    f"{self.num_taken} constraints were compiled for {COMPILE_WAIT_SECONDS:g} s"
                ) from None
            raise

    def give(self, key: str) -> None:
        """Return a slot."""
        self._taken[key] -= 1
        while may_start := [waiting for waiting in self._waiting if self._is_free(waiting.key)]:
            following = min(may_start, key=lambda waiting: self._taken[waiting.key])
            self._waiting.remove(following)
            self._taken[following.key] += 1
            if not following.turn.done():
                following.turn.set_result(None)

    def _is_free(self, key: str) -> bool:
        is_full = bool(key) and self._taken[key] >= MAX_COMPILES // 2
        return self.num_taken < MAX_COMPILES and not is_full


def _exhausted(complaint: str) -> RequestError:
    return RequestError(
        Code.RESOURCE_EXHAUSTED,
        f"{complaint}; try again in a moment",
        reason="TOO_MANY_CONSTRAINTS",
        retry_after=_RETRY_AFTER_SECONDS,
    )
