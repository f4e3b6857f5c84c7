"""Whole numbers with a suffix, by the examples that vLLM gives of its rule."""

from __future__ import annotations

import pytest

from switchyard.sizes import size


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32768", 32768), ("1k", 1000), ("1K", 1024), ("25.6k", 25_600), ("32k", 32_000),
        ("32K", 32_768), ("2m", 2_000_000), ("1.5M", 1_572_864), ("3g", 3_000_000_000),
        ("1G", 1 << 30), ("0.1k", 100), ("-4", -4),
    ],
)  # fmt: skip
def test_suffixes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize(
    "text", ["", "k", "1.5", "1.0001k", "0.3K", "1kk", "1 k", "1e3k", "-1k", "1/2k"]
)
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError):
        size(text)
