"""Flags that are fields of a dataclass: parser, help, values, sizes, checks, what is passed on."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from frontend.config import FrontendConfig
from switchyard import flags
from switchyard.flags import flag
from switchyard.sizes import size
from workers.config import LauncherConfig, ParallelFlags, WorkerConfig

TABLES = [FrontendConfig, WorkerConfig, ParallelFlags, LauncherConfig]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A flag of each kind."""

    folder: Path = flag("where it lies")
    places: tuple[str, ...] = flag("where it goes", unset="nowhere", shared=False)
    count: int = flag("how many", 3, aliases=("--number",), at_least=1, at_most=9)
    share: float = flag("how much", 0.5, unit="parts", above=0, at_most=1)
    most: int | None = flag("at most", None, unset="any number")
    length: int = flag("how long", 8, unit="tokens", at_least=2)
    shade: str = flag("which", "dark", choices=("dark", "light"))
    quick: bool = flag("hurry", False)
    cache: bool = flag("keep nothing", True)

    def __post_init__(self) -> None:
        flags.check(self)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    flags.add_flags(parser, Table)
    return parser.parse_args(words)


def test_what_is_not_given_takes_the_tables_default() -> None:
    table = flags.read(Table, parsed("--folder", "a", "--places", "b"))
    assert table == Table(folder=Path("a"), places=("b",))
    assert (table.count, table.share, table.most, table.shade) == (3, 0.5, None, "dark")
    assert (table.quick, table.cache) == (False, True)


def test_a_list_is_given_at_once_or_one_by_one() -> None:
    for words in (("b,c",), ("b", "--places", "c")):
        table = flags.read(Table, parsed("--folder", "a", "--places", *words))
        assert table.places == ("b", "c")


def test_texts_become_values_of_their_types() -> None:
    given = flags.given(
        Table,
        parsed(
            "--folder", "a/b", "--places", "c,d", "--number", "9", "--share", "1", "--most", "-4",
            "--length", "32k", "--shade", "light", "--quick", "--no-cache",
        ),
    )  # fmt: skip
    assert given == {
        "folder": Path("a/b"), "places": ("c", "d"), "count": 9, "share": 1.0, "most": -4,
        "length": 32_000,
        "shade": "light", "quick": True, "cache": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--count", "many"), "--count is 'many'; pass a whole number, at least 1 and at most 9"),
        (("--count", "0"), "--count is 0; pass a whole number, at least 1 and at most 9"),
        (("--number", "10"), "--count is 10; pass a whole number, at least 1 and at most 9"),
        (("--share", "0"), "--share is 0.0; pass parts, above 0 and at most 1"),
        (("--share", "nan"), "--share is nan; pass parts, above 0 and at most 1"),
        (("--share", "inf"), "--share is inf; pass parts, above 0 and at most 1"),
        (("--most", "1.5"), "--most is '1.5'; pass a whole number"),
        (("--most", "1k"), "--most is '1k'; pass a whole number"),
        (("--length", "1"), "--length is 1; pass a whole number, or one such as 32k, at least 2"),
        (
            ("--length", "long"),
            "--length is 'long'; pass a whole number, or one such as 32k, at least 2",
        ),
        (("--shade", "grey"), "--shade is 'grey'; pass one of dark, light"),
    ],
)
def test_a_bad_value_is_one_line_with_the_remedy(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(ValueError) as caught:
        flags.given(Table, parsed("--folder", "a", *words))
    assert str(caught.value) == line


def test_a_table_made_by_hand_is_checked_too() -> None:
    with pytest.raises(ValueError, match="--count is 0; pass"):
        Table(folder=Path(), places=(), count=0)


def test_a_flag_without_default_or_meaning_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--places", "b")
    assert caught.value.code == 2
    assert "--folder" in capsys.readouterr().err


def test_help_has_choices_units_and_defaults() -> None:
    parser = argparse.ArgumentParser()
    flags.add_flags(parser, Table)
    text = " ".join(parser.format_help().split())
    for line in (
        "--folder FILE where it lies; required", "--places TEXT where it goes; default: nowhere",
        "--count N, --number N how many; default: 3", "--share PARTS how much; default: 0.5 parts",
        "--most N at most; default: any number",
        "--length TOKENS how long; default: 8 tokens", "--shade {dark,light} which; default: dark",
        "--quick hurry", "--no-cache keep nothing",
    ):  # fmt: skip
        assert line in text


def test_what_was_given_is_passed_on_as_it_was_written() -> None:
    parser = argparse.ArgumentParser()
    flags.add_shared_flags(parser, Table)
    assert flags.words(Table, parser.parse_args([])) == []
    given = parser.parse_args(["--number", "04", "--no-cache", "--folder", "x"])
    assert flags.words(Table, given) == ["--folder", "x", "--count", "04", "--no-cache"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--places", "b"])
    with pytest.raises(ValueError, match="--shade"):
        flags.words(Table, parser.parse_args(["--shade", "x"]))


@pytest.mark.parametrize("table", TABLES)
def test_every_field_of_a_config_is_a_flag_whose_default_is_allowed(table: Any) -> None:
    listed = flags.flags_of(table)
    assert [each.field for each in listed] == [each.name for each in dataclasses.fields(table)]
    for each in listed:
        if each.default is not dataclasses.MISSING:
            each.check(each.default)
        assert each.help
        assert each.is_switch or each.default is not None or each.unset, each.name


# ---- sizes, by the examples that vLLM gives of its rule ----


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32768", 32768), ("1k", 1000), ("1K", 1024), ("25.6k", 25_600), ("32k", 32_000),
        ("32K", 32_768), ("2m", 2_000_000), ("1.5M", 1_572_864), ("3g", 3_000_000_000),
        ("1G", 1 << 30), ("0.1k", 100), ("-4", -4),
    ],
)  # fmt: skip
def test_a_size_has_a_suffix(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize(
    "text", ["", "k", "1.5", "1.0001k", "0.3K", "1kk", "1 k", "1e3k", "-1k", "1/2k"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        size(text)
