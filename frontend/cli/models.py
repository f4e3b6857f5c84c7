"""`switchyard models`: which models are served."""

from __future__ import annotations

import sys

from workers.served_models import FORMATS, HEADER, rows, text_table


def run() -> int:
    """Write the table to stdout."""
    sys.stdout.write(f"{text_table([HEADER, *rows()])}\n\n{FORMATS}\n")
    return 0
