"""Which release of Switchyard this is. Knows the installed package's name and nothing else."""

from __future__ import annotations

import importlib.metadata


def release() -> str:
    """The installed version; ``0+source`` for a checkout that is not installed."""
    try:
        return importlib.metadata.version("switchyard")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"
