"""What the HTTP server and the applications behind it agree on, beyond ASGI."""

from __future__ import annotations

FILLER = "filler"
"""Key of a scope's state: bytes that readers of this response ignore between two parts of it."""
