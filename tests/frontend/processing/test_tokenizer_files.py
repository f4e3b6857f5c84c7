"""A tokenizer's files that cannot be read are one line each, and block nobody."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frontend.processing.tokenizer import Tokenizer
from frontend.processing.tokenizer_files import FILES
from tests.refusals import refusal

VALUES: list[Any] = [None, True, -1, 10**20, 1.5, "", "\ud800", [], [1], {}, {"a": 1}, [[[]]]]


@pytest.fixture
def folder(tokenizer_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokenizer_folder, tmp_path / "model"))


def refused(folder: Path) -> str:
    return refusal(lambda: Tokenizer.load(folder))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "is a FIFO; put a regular file there"),
        (Path.mkdir, "is a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.symlink_to("nothing"), "No such file"),
        (lambda path: (path.touch(), os.truncate(path, 1 << 40)), f"{1 << 40} bytes, at most"),
    ],
    ids=["fifo", "directory", "device", "dangling", "huge"],
)
def test_what_is_no_file_to_read_is_named(
    folder: Path, name: str, make: Callable[[Path], object], words: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    assert refused(folder).startswith(f"{folder / name}: {words}")


def test_another_template_of_the_folder_is_looked_at_too(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    os.mkfifo(folder / "additional_chat_templates" / "rag.jinja")
    assert "rag.jinja: is a FIFO" in refused(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text",
    [
        b"[]", b"{", b"", b"7", b"\xff\xfe{}", b'{"a":' * 10**5, b"[" * 10**5,
        b'{"a": ' + b"9" * 5000,
    ],
    ids=["list", "cut", "empty", "number", "utf-16", "deep", "deeper", "digits"],
)  # fmt: skip
def test_what_is_not_the_json_that_it_should_be_is_one_line(
    folder: Path, name: str, text: bytes
) -> None:
    (folder / name).write_bytes(text)
    blamed = f"tokenizer in {folder} cannot be read: "
    if name == "tokenizer_config.json":
        blamed = f"{folder / name}: not "
    assert refused(folder).startswith(blamed)


@pytest.mark.parametrize("seed", range(60))
def test_any_damage_is_one_line_or_does_not_matter(folder: Path, seed: int) -> None:
    """A value of one of its files becomes another, or goes."""
    rng = random.Random(seed)
    path = folder / rng.choice(["tokenizer.json", "tokenizer_config.json"])
    whole = json.loads(path.read_text())
    place: Any = whole
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        place[key] = rng.choice(VALUES)
        break
    path.write_text(json.dumps(whole))
    line = ""
    try:
        Tokenizer.load(folder)
    except ValueError as error:
        line = str(error)
    assert "\n" not in line


def test_a_panic_of_the_library_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It derives from BaseException, as the name of its class alone tells."""
    import transformers

    def panics(*args: Any, **kwargs: Any) -> None:
        raise type("PanicException", (BaseException,), {})("index out of range\nbacktrace")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", panics)
    assert refused(folder) == f"tokenizer in {folder} cannot be read: index out of range"


def test_an_end_token_that_the_model_does_not_have_is_refused(
    tokenizer_folder: Path,
) -> None:
    loaded = Tokenizer.load(tokenizer_folder)
    assert loaded is not None
    end = loaded.eos_token_id
    assert end is not None
    assert Tokenizer.load(tokenizer_folder, vocab_size=end + 1) is not None
    words = f"ends texts with token {end}, '<|end|>', and config.json's vocab_size is {end};"
    assert words in refusal(lambda: Tokenizer.load(tokenizer_folder, vocab_size=end))
