"""Files of a model folder: what is no small regular file of JSON is one line, and blocks nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from switchyard.model_files import named, read_bytes, read_object, shown
from tests.refusals import refusal

MAKE: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: None, "No such file or directory"),
    "directory": (Path.mkdir, "is a directory; put a regular file there"),
    "fifo": (os.mkfifo, "is a FIFO; put a regular file there"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device; put a regular file there"),
    "circle": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "empty": (Path.touch, "not valid JSON in UTF-8: Expecting value"),
    "huge": (lambda path: (path.touch(), os.truncate(path, 1 << 40)), "at most 1000 are read"),
    "list": (lambda path: path.write_text("[1]"), "not a JSON object"),
    "cut": (lambda path: path.write_text('{"a": '), "not valid JSON in UTF-8: Expecting value"),
    "deep": (lambda path: path.write_text('{"a":' * 150), "not valid JSON"),
    "utf-16": (lambda path: path.write_bytes('{"a": 1}'.encode("utf-16")), "in UTF-8: 'utf-8'"),
    "bom": (lambda path: path.write_bytes(b'\xef\xbb\xbf{"a": 1}'), "Unexpected UTF-8 BOM"),
    "nan": (lambda path: path.write_text('{"a": 1, "b": NaN}'), "'b' is no finite number"),
    "infinite": (lambda path: path.write_text('{"b": [{"c": 1e999}]}'), "'b' is no finite number"),
    "digits": (lambda path: path.write_text('{"b": ' + "9" * 5000 + "}"), "at most 1000 are read"),
}


@pytest.mark.parametrize("what", MAKE)
def test_what_is_no_small_file_of_json_is_one_line(what: str, tmp_path: Path) -> None:
    make, words = MAKE[what]
    make(tmp_path / "f.json")
    line = refusal(lambda: read_object(tmp_path / "f.json", 1000))
    assert line.startswith(f"{tmp_path / 'f.json'}: ")
    assert words in line


def test_deep_nesting_and_long_numbers_are_one_line(tmp_path: Path) -> None:
    for text in ('{"a":' + "[" * 10**5, '{"a":' * 10**5, '{"a": ' + "9" * 5000 + "}"):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(ValueError, match="not valid JSON"):
            read_object(tmp_path / "f.json")


def test_a_socket_is_one_line(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(ValueError, match="is a socket"):
            read_bytes(tmp_path / "s", 10)


def test_what_is_there_is_read(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"a": [1, 2.5, null, "é"], "b": {}}')
    assert read_object(tmp_path / "f.json") == {"a": [1, 2.5, None, "é"], "b": {}}


def test_values_and_names_fit_a_line() -> None:
    for value in ("x\n" * 10**5, [[[[[1]]]]], 10**4000, dict.fromkeys(range(10**4)), "\ud800"):
        assert len(shown(value)) < 200
        assert "\n" not in shown(value)
    assert named("model.layers.0.mlp.gate.weight") == "model.layers.0.mlp.gate.weight"
    assert named("a\nb\ud800") == "a\\nb\\ud800"
    assert len(named("x" * 10**6)) == 200
