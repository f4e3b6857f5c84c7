"""The folder of a server's sockets and secret, and what killed servers have left of theirs.

Owns its place and the lock that says its server lives. Knows nothing of what lies in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "switchyard-"
_MARK = "lives-while-locked"
"""A file that says that the folder is a server's, and abandoned when nobody holds its lock."""


@contextlib.contextmanager
def runtime_folder() -> Iterator[Path]:
    """A folder that only this user can read, for as long as the context lasts.

    Those of this user's servers that were killed before they could remove theirs go first.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / _MARK).touch()  # after the lock: nobody takes it for abandoned
            yield folder
        finally:
            os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    for mark in parent.glob(f"{_PREFIX}*/{_MARK}"):
        with contextlib.suppress(OSError):
            _remove_if_abandoned(mark.parent)


def _remove_if_abandoned(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
