"""What is refused is refused in one line that a terminal has room for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_MAX_LINE = 700


def refusal(refused: Callable[[], object]) -> str:
    """The line of the ValueError that a call must raise."""
    with pytest.raises(ValueError) as raised:
        refused()
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) < _MAX_LINE
    return line
