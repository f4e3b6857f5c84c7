"""Flags of the workers whose values will not do are named."""

from pathlib import Path
from typing import Any

import pytest

from switchyard.flags import read
from workers.__main__ import parser
from workers.config import WorkerConfig


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"device": "tpu"}, "--device.*tpu.*cuda"),
        ({"dtype": "int4"}, "--dtype.*int4"),
        ({"dtype": "float16"}, "--dtype is 'float16'; pass one of auto, bfloat16, float32"),
        ({"load_format": "pickle"}, "--load-format.*pickle"),
        ({"max_batch_size": 0}, "--max-batch-size is 0"),
        ({"memory_fraction": 1.5}, "--memory-fraction is 1.5"),
        ({"listen": "foo"}, "--listen is 'foo'; give HOST:PORT"),
    ],
)
def test_bad_flags_are_named(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        WorkerConfig(**{"model": Path(), "listen": "127.0.0.1:1", **flags})


@pytest.mark.parametrize(
    ("word", "dtype"),
    [
        ("auto", "auto"), ("bfloat16", "bfloat16"), ("bf16", "bfloat16"),
        ("float32", "float32"), ("fp32", "float32"), ("float", "float32"),
    ],
)  # fmt: skip
def test_a_dtype_has_several_spellings(word: str, dtype: str) -> None:
    flags = parser().parse_args(["--model", "m", "--dtype", word])
    assert read(WorkerConfig, flags).dtype == dtype


@pytest.mark.parametrize("word", ["float16", "half", "fp16", "BF16", ""])
def test_a_dtype_that_is_not_computed_names_those_that_are(word: str) -> None:
    flags = parser().parse_args(["--model", "m", "--dtype", word])
    with pytest.raises(ValueError, match=r"--dtype is .*; pass one of auto, bfloat16, float32"):
        read(WorkerConfig, flags)
