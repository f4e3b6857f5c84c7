"""The bodies of all requests to the port: they share one budget, and long ones are parsed in turns.

Knows nothing of what becomes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request

from frontend.api.http.body import Budget, parse_object, read_body
from frontend.errors import invalid_field
from frontend.processing.threads import TURN_LENGTH, Turns

_R = TypeVar("_R")


class Uploads:
    """Reads bodies; every API of the port has the same."""

    def __init__(self) -> None:
        self._budget, self._turns = Budget(), Turns()

    async def read(self, request: Request, function: Callable[[dict[str, Any]], _R]) -> _R:
        """What ``function`` makes of a body's JSON object, which may hold up the loop where that
        is long.

        Raises:
            HttpError, ClientDisconnect: see `read_body`.
            RequestError: the body is no JSON object, or ``function`` refuses it.
        """
        body = await read_body(request, self._budget)

        def made(body: bytes) -> _R:
            try:
                return function(parse_object(body))
            except RecursionError as error:  # JSON that can just be parsed may be too deep to write
                raise invalid_field("body", "is nested too deep; send flatter JSON") from error

        if len(body) <= TURN_LENGTH:
            return made(body)
        return await self._turns.run(made, body)
