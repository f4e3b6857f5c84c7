"""Which APIs the HTTP port has."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.routing import Route

from frontend.api.anthropic.app import anthropic_api
from frontend.api.anthropic.openapi import described
from frontend.api.http.app import http_app
from frontend.api.http.body import Uploads
from frontend.api.http.middleware import Authenticate, without_keys
from frontend.api.openai.app import Metrics, openai_api
from frontend.service.service import Service


def application(
    service: Service,
    *,
    model: str,
    authenticate: Authenticate = without_keys,
    metrics: Metrics | None = None,
    origins: Sequence[str] = (),
    local_host: str | None = None,
    pages: Sequence[Route] = (),
) -> Starlette:
    """The application of the port; see `http_app` and `openai_api`."""
    uploads = Uploads()
    return http_app(
        [
            anthropic_api(service, model=model, uploads=uploads),
            openai_api(
                service, model=model, uploads=uploads, metrics=metrics, others=[described()]
            ),
        ],
        authenticate=authenticate,
        origins=origins,
        local_host=local_host,
        pages=pages,
    )
