"""Flags of the workers whose values will not do are named."""

from pathlib import Path
from typing import Any

import pytest

from workers.config import WorkerConfig


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"device": "tpu"}, "--device.*tpu.*cuda"),
        ({"dtype": "int4"}, "--dtype.*int4"),
        ({"load_format": "pickle"}, "--load-format.*pickle"),
        ({"max_batch_size": 0}, "--max-batch-size is 0"),
        ({"memory_fraction": 1.5}, "--memory-fraction is 1.5"),
        ({"listen": "foo"}, "--listen is 'foo'; give HOST:PORT"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        WorkerConfig(**{"model": Path(), "listen": "127.0.0.1:1", **flags})
