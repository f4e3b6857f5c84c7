"""Limits of the shell that no server can live with, told before it starts.

Knows nothing of what a process does with what it is allowed.
"""

from __future__ import annotations

import resource

_MIN_DESCRIPTORS = 64
_RANK_MEMORY = 5 << 29
"""Bytes of address space that a rank maps before it has read any weights: torch's libraries."""


def check_limits(*, ranks: bool) -> None:
    """Refuse limits that would end the process later, in words that do not name them.

    Args:
        ranks: whether ranks are to run below this process.

    Raises:
        ValueError: one line naming the limit, its value, and what is needed.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= descriptors < _MIN_DESCRIPTORS:
        raise ValueError(
            f"ulimit -n is {descriptors}: a server opens up to {_MIN_DESCRIPTORS} files, "
            "and one more for each connection; raise it"
        )
    memory, _ = resource.getrlimit(resource.RLIMIT_AS)
    if ranks and 0 <= memory < _RANK_MEMORY:
        raise ValueError(
            f"ulimit -v is {memory >> 10}: a rank maps more than {_RANK_MEMORY >> 10} KiB beside "
            "its weights; raise it, or lift it with ulimit -v unlimited"
        )
