"""Whether requests are worked on right now, for those who ask without a request of their own.

Answers from memory; asks no worker.
"""

from __future__ import annotations

from frontend.errors import RequestError
from frontend.service.service import Service


def why_not_ready(service: Service) -> str:
    """Why no request is worked on, in one line; empty while they are."""
    try:
        restarting = service.engine_load().restarting
    except RequestError as error:
        return error.message
    if not service.takes_requests:
        return "the server is shutting down"
    return "the workers are lost, and not back yet" if restarting else ""
