"""The application of the HTTP port: several APIs, and what each request passes before one of them.

Owns which API's shape an error has, and the errors for a path or a method that none has. Knows no
API's paths.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from frontend.api.http.errors import HttpError
from frontend.api.http.middleware import (
    OPEN_PATHS,
    Authenticate,
    Authentication,
    RequestIds,
    TrailingSlashes,
    for_browsers,
)
from frontend.errors import RequestError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpApi:
    """One API over HTTP.

    Attributes:
        routes: its paths.
        is_asked: whether a request is meant for it, also where it has no such path.
        not_found: what is said of a path that it has not.
        error_response: an error in its shape; of its own an API may raise other HTTPExceptions.
    """

    routes: Sequence[Route]
    is_asked: Callable[[Scope], bool]
    not_found: Callable[[str], str]
    error_response: Callable[[Scope, HTTPException | RequestError], Response]


def http_app(
    apis: Sequence[HttpApi],
    *,
    authenticate: Authenticate,
    origins: Sequence[str],
    local_host: str | None,
    pages: Sequence[Route],
) -> Starlette:
    """The application.

    Args:
        apis: the first that is asked answers; the last one is asked whatever the others are not.
        authenticate: from the Authorization header to the name of its key; raises
            UNAUTHENTICATED. `OPEN_PATHS` need no key.
        origins: of the web pages that may call, besides the server's own.
        local_host: where a server listens that only programs of this machine and the pages of
            ``origins`` may call; None: keys decide alone.
        pages: beside the APIs, which need no key.
    """

    def respond(scope: Scope, error: HTTPException | RequestError) -> Response:
        api = next(each for each in apis if each.is_asked(scope))
        if type(error) is HTTPException:  # Starlette's
            error = _unrouted(api, scope["path"], error)
        return api.error_response(scope, error)

    async def on_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException | RequestError)
        return respond(request.scope, error)

    routes = [route for api in apis for route in api.routes]
    num_apis = Counter(route.path for route in routes)
    app = Starlette(
        # Paths that several APIs have come last: each of these looks at more than the path.
        routes=[*sorted(routes, key=lambda route: num_apis[route.path] > 1), *pages],
        middleware=[
            Middleware(RequestIds, respond=respond),
            Middleware(TrailingSlashes),
            *for_browsers(origins, local_host, respond),
            Middleware(
                Authentication,
                authenticate=authenticate,
                open_paths=OPEN_PATHS | {page.path for page in pages},
                respond=respond,
            ),
        ],
        exception_handlers={
            HTTPException: on_error,
            RequestError: on_error,
            ClientDisconnect: _on_disconnect,
        },
    )
    app.router.redirect_slashes = False
    return app


def _unrouted(api: HttpApi, path: str, error: HTTPException) -> HttpError:
    """The error for a path or a method that Starlette did not find."""
    if error.status_code != 405:
        return HttpError(404, api.not_found(path), code="not_found")
    allowed = sorted((error.headers or {}).get("Allow", "").split(", "))
    return HttpError(
        405,
        f"{path} takes {allowed[0]}",
        code="method_not_allowed",
        headers={"allow": ", ".join(allowed)},
    )


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """The response to a client that has left before its body's end: it is not sent on."""
    return Response(status_code=499)
