"""What a parser says of flags that it does not have."""

from __future__ import annotations

import argparse

import pytest

from switchyard.parser import Parser


def parser() -> Parser:
    top = Parser(prog="rail")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    move = commands.add_parser("move", hints={"--velocity": "--speed sets it"})
    for flag in ("--speed", "--speed-limit", "--cargo"):
        move.add_argument(flag)
    move.add_argument("car", nargs="?")
    commands.add_parser("stop")
    return top


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("move --velocity=3", "rail move: there is no flag --velocity here: --speed sets it"),
        ("move 7 --velocity 3", "rail move: there is no flag --velocity here: --speed sets it"),
        ("move --sped 3", "rail move: there is no flag --sped, but --speed"),
        ("move --spee 3", "rail move: there is no flag --spee, but --speed and --speed-limit"),
        ("move --weight 3", "rail move: there is no flag --weight"),
        ("move 7 8 9", "rail move: '8 9' is too much"),
        ("move --speed", "rail move: argument --speed: expected one argument"),
        ("stop --speed 3", "rail stop: there is no flag --speed"),
        ("--speed 3 move", "rail: argument COMMAND: invalid choice: '3'"),
        ("", "rail: the following arguments are required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line_of_the_command_that_was_typed(
    words: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(words.split())
    assert caught.value.code == 2
    said = capsys.readouterr().err
    program = line.partition(":")[0]
    assert said.startswith(line)
    assert said.endswith(f"; see `{program} --help`\n")
    assert said.count("\n") == 1


def test_whole_names_pass() -> None:
    known = parser().parse_args(["move", "7", "--speed", "3", "--speed-limit=4"])
    assert known == argparse.Namespace(car="7", speed="3", speed_limit="4", cargo=None)
