"""The playground: a page at / to chat with the model and to watch the server.

Owns its files, their paths and their headers. They are the same for every server of a release and
hold nothing of it: what the page shows it asks the API for, as any other client, with its caller's
key. Knows no path of the API.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE = Path(__file__).parent / "index.html"
FILES = Path(__file__).parent / "files"

_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# No inline script or style, nothing of another host, no text that becomes HTML, and no other page
# around this one.
HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def playground_routes() -> list[Route]:
    """The page at / and what it loads; all are read here, once."""
    files = {f"/playground/{path.name}": path for path in sorted(FILES.iterdir())}
    return [_route(where, path) for where, path in {"/": PAGE, **files}.items()]


def _route(where: str, path: Path) -> Route:
    response = Response(path.read_bytes(), headers=HEADERS, media_type=_TYPES[path.suffix])

    async def endpoint(_: Request) -> Response:
        return response

    return Route(where, endpoint, methods=["GET"])
