"""How many requests one API key may have live at once."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from frontend.errors import Code, RequestError

KEY_LIMIT_RETRY_SECONDS = 1.0


class KeyLimit:
    """Bounds the live requests of each key.

    Args:
        most: of one key; 0 is any number. Callers without a key have no bound.
    """

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self._live: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, key: str) -> Iterator[None]:
        """Count one request of ``key`` as live.

        Raises:
            RequestError: RESOURCE_EXHAUSTED; the key has as many as it may.
        """
        if not self.most or not key:
            yield
            return
        if self._live[key] >= self.most:
            raise RequestError(
                Code.RESOURCE_EXHAUSTED,
                f"key {key} has {self._live[key]} live requests, and may have {self.most}; "
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
