"""`python -m switchyard.worker.make_secret FILE`: a secret for frontend and workers, made up once.

A file that is there stays as it is.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path


def make_secret(path: Path) -> None:
    """Write a random secret that its owner alone can read, unless the file exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")


if __name__ == "__main__":
    make_secret(Path(sys.argv[1]))
