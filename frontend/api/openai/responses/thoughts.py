"""Thoughts as ``encrypted_content``, which clients keep and send back: here it hides nothing.

A server that keeps no key between its starts, and of which there are several, cannot read what
another has encrypted; and who sends thoughts back has had them in plain text.
"""

from __future__ import annotations

import base64
import binascii

_PREFIX = "switchyard-"


def sealed(text: str) -> str:
    """Thoughts as ``encrypted_content``: a prefix and base64 of UTF-8."""
    return _PREFIX + base64.b64encode(text.encode()).decode()


def unsealed(content: str) -> str | None:
    """The thoughts of an ``encrypted_content``; None: another server made it."""
    if not content.startswith(_PREFIX):
        return None
    try:
        return base64.b64decode(content.removeprefix(_PREFIX), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
