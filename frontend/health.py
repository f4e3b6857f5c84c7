"""grpc.health.v1 for this process.

Owns the names that are asked for and what they mean: "" and the service's full name are readiness
("can it serve?"), "liveness" is the event loop being alive. Answers from memory, never through the
engine.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

SERVICE_NAME = "switchyard.v1.InferenceService"
READINESS = ("", SERVICE_NAME)
LIVENESS = "liveness"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Not ready until told so; its Watch streams end when the server does."""

    def __init__(self) -> None:
        super().__init__()
        self._server_status = dict.fromkeys(READINESS, _NOT_SERVING)
        self._server_status[LIVENESS] = _SERVING
        self._watches: set[asyncio.Task[None]] = set()

    async def set_ready(self, ready: bool) -> None:
        """Say on both readiness names whether requests are taken."""
        for name in READINESS:
            await self.set(name, _SERVING if ready else _NOT_SERVING)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        """Stream changes until the client leaves or `end_watches`."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.shield(watch)
        except asyncio.CancelledError:
            if not watch.cancelled():  # the client left: the stream goes with it
                watch.cancel()
                raise
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        finally:
            self._watches.discard(watch)

    async def end_watches(self) -> None:
        """End every Watch stream: one that is open holds the server's stop for all its grace."""
        for watch in tuple(self._watches):
            watch.cancel()
        await asyncio.sleep(0)
