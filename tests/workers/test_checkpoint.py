"""Headers of safetensors files are believed as far as their files bear them out."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.refusals import refusal
from workers.checkpoint import INDEX, SINGLE, Checkpoint

Header = dict[str, Any]


def write_file(path: Path, header: Header | bytes, values: int, length: int | None = None) -> None:
    """A safetensors file with a header, and so many bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    told = struct.pack("<Q", len(text) if length is None else length)
    path.write_bytes(told + text + bytes(values))


def header_of(**shapes: list[int]) -> Header:
    """Tensors of float32 in a row."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    return header


def changed(tensor: str, **fields: Any) -> Header:
    header = header_of(a=[2, 3], b=[4])
    header[tensor] = {**header[tensor], **fields}
    return header


def refused(folder: Path) -> str:
    return refusal(lambda: Checkpoint(folder))


def test_tensors_are_those_of_the_header(tmp_path: Path) -> None:
    write_file(tmp_path / SINGLE, {"__metadata__": {"x": "y"}, **header_of(a=[2, 3], b=[])}, 28)
    tensors = Checkpoint(tmp_path).tensors
    assert {name: (info.shape, info.dtype) for name, info in tensors.items()} == {
        "a": ((2, 3), "F32"), "b": ((), "F32"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("header", "values", "words"),
    [
        (header_of(a=[2, 3], b=[4]), 39, "tensor b ends at"),
        (header_of(a=[2, 3], b=[4]), 41, "the file is longer than its header says"),
        (changed("b", data_offsets=[20, 36]), 40, "tensor b begins at"),
        (changed("b", data_offsets=[28, 44]), 44, "tensor b begins at"),
        (changed("a", data_offsets=[24, 0]), 40, "tensor a of shape [2, 3] and type F32 takes 24"),
        (changed("a", data_offsets=[0]), 40, "tensor a is {"),
        (changed("a", data_offsets=[-24, 0]), 40, "tensor a is {"),
        (changed("a", data_offsets=[0, 24.0]), 40, "tensor a is {"),
        (changed("a", shape=[2, 4]), 40, "takes 32 bytes, its data_offsets hold 24"),
        (changed("a", shape=[2**40, 2**40]), 40, "its data_offsets hold 24"),
        (changed("a", shape=[2**63]), 40, "tensor a is {"),
        (changed("a", shape=[True, 6]), 40, "tensor a is {"),
        (changed("a", shape=[1] * 10**5), 40, "tensor a is {"),
        (changed("a", shape="6"), 40, "tensor a is {"),
        (changed("a", dtype="I32"), 40, "tensor a has type I32, supported are BF16, F16, F32"),
        (changed("a", dtype="F8_E4M3"), 40, "tensor a has type F8_E4M3"),
        (changed("a", dtype="Q4" * 1000), 40, "tensor a has type Q4Q4"),
        (changed("a", dtype=7), 40, "tensor a is {"),
        ({"a": [1]}, 0, "tensor a is [1]"),
        ({"a\nb": 1}, 0, "tensor a\\nb is 1"),
        ({"x" * 10**6: 1}, 0, "tensor xxx"),
        (b"[]", 0, "its safetensors header: not a JSON object"),
        (b"{..}", 0, "its safetensors header: not valid JSON"),
        (b"\xff\xfe{}", 0, "its safetensors header: not valid JSON in UTF-8"),
        (b"[" * 10**5, 0, "its safetensors header: not valid JSON: nested too deeply"),
    ],
)
def test_a_header_that_lies_is_one_line(
    header: Header | bytes, values: int, words: str, tmp_path: Path
) -> None:
    write_file(tmp_path / SINGLE, header, values)
    assert refused(tmp_path).startswith(f"{tmp_path / SINGLE}: ")
    assert words in refused(tmp_path)


@pytest.mark.parametrize(
    ("size", "length", "words"),
    [
        (0, None, "in a file of 0: truncated or not safetensors"),
        (7, None, "in a file of 7: truncated or not safetensors"),
        (100, 1 << 62, f"header of {1 << 62} bytes in a file of 100: truncated"),
        (100, 93, "header of 93 bytes in a file of 100: truncated"),
        (1 << 40, 1 << 30, "at most 33554432 are read; save the tensors in several files"),
    ],
)
def test_a_length_that_lies_is_one_line(
    size: int, length: int | None, words: str, tmp_path: Path
) -> None:
    with (tmp_path / SINGLE).open("wb") as file:
        if length is not None:
            file.write(struct.pack("<Q", length))
        file.truncate(size)
    assert words in refused(tmp_path)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    text=st.binary(max_size=200)
    | st.builds(
        lambda header: json.dumps(header).encode(),
        st.dictionaries(
            st.sampled_from(["a", "b", "__metadata__"]),
            st.fixed_dictionaries(
                {},
                optional={
                    "dtype": st.sampled_from(["F32", "BF16", "I8", "", None]),
                    "shape": st.lists(st.integers(-1, 4), max_size=3),
                    "data_offsets": st.lists(st.integers(-1, 40), max_size=3),
                },
            ),
        ),
    ),
    values=st.integers(0, 48),
)
def test_any_header_is_refused_in_one_line_or_covers_its_file(
    text: bytes, values: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_file(folder / SINGLE, text, values)
    line, covered = "", 0
    try:
        for info in Checkpoint(folder).tensors.values():
            covered += math.prod(info.shape) * {"F32": 4, "BF16": 2}[info.dtype]
    except ValueError as error:
        line = str(error)
    assert "\n" not in line
    assert line or covered == values


# ---- several files ----


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_file(folder / "1.safetensors", header_of(a=[2]), 8)
    write_file(folder / "2.safetensors", header_of(b=[3], c=[1]), 16)
    write_index(folder, {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"})
    return folder


def write_index(folder: Path, mapping: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": mapping}))


def move_out(folder: Path) -> None:
    os.rename(folder / "2.safetensors", folder.parent / "2.safetensors")
    write_index(folder, {"a": "1.safetensors", "b": "../2.safetensors"})


def link_out(folder: Path) -> None:
    os.rename(folder / "2.safetensors", folder.parent / "2.safetensors")
    (folder / "2.safetensors").symlink_to(folder.parent / "2.safetensors")


def link_in_a_circle(folder: Path) -> None:
    (folder / "2.safetensors").unlink()
    (folder / "2.safetensors").symlink_to("2.safetensors")


def fifo_for_a_file(folder: Path) -> None:
    (folder / "2.safetensors").unlink()
    os.mkfifo(folder / "2.safetensors")


def fifo_for_the_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    os.mkfifo(folder / INDEX)


def huge_index(folder: Path) -> None:
    os.truncate(folder / INDEX, 1 << 40)


DAMAGES: dict[Callable[[Path], None], tuple[str, str]] = {
    lambda folder: (folder / "2.safetensors").unlink(): ("2.safetensors", "No such file"),
    move_out: (INDEX, "names '../2.safetensors', outside the folder"),
    link_out: ("2.safetensors", "outside the folder; copy or move the file here"),
    link_in_a_circle: ("2.safetensors", "Too many levels of symbolic links"),
    fifo_for_a_file: ("2.safetensors", "is a FIFO; put a regular file there"),
    fifo_for_the_index: (INDEX, "is a FIFO; put a regular file there"),
    huge_index: (INDEX, f"{1 << 40} bytes, at most"),
    lambda folder: write_index(folder, {"a": "\0"}): (INDEX, r"names '\x00', outside"),
    lambda folder: write_index(folder, {"a": "/etc/passwd"}): (INDEX, "outside the folder"),
    lambda folder: write_index(folder, {"a": ""}): ("model", "is a directory"),
    lambda folder: write_index(folder, {"a": 1}): (INDEX, "weight_map has 1 for 'a'"),
    lambda folder: write_index(folder, [1]): (INDEX, "has no weight_map"),
    lambda folder: write_index(folder, {"a": "1.safetensors", "b": "1.safetensors"}): (
        "1.safetensors", "tensor b is missing, but model.safetensors.index.json puts it there",
    ),
    lambda folder: write_file(folder / "1.safetensors", header_of(b=[3]), 12): (
        "2.safetensors", "tensor b is also in 1.safetensors",
    ),
    lambda folder: (folder / INDEX).unlink(): ("model", "--load-format dummy serves made-up"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_is_damaged_is_one_line(
    damage: Callable[[Path], None], sharded: Path
) -> None:
    assert len(Checkpoint(sharded).tensors) == 3
    damage(sharded)
    file, words = DAMAGES[damage]
    where = sharded if file == "model" else sharded / file
    assert refused(sharded).startswith(f"{where}: "), refused(sharded)
    assert words in refused(sharded)


def test_a_link_is_blamed_where_no_index_is(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_file(tmp_path / SINGLE, header_of(a=[2]), 8)
    (folder / SINGLE).symlink_to(tmp_path / SINGLE)
    assert refused(folder).startswith(f"{folder / SINGLE}: links to {tmp_path / SINGLE}, outside")


def test_blobs_of_the_hub_s_cache_are_inside(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "rev", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_file(blobs / "f00", header_of(a=[2]), 8)
    (snapshot / SINGLE).symlink_to("../../blobs/f00")
    assert list(Checkpoint(snapshot).tensors) == ["a"]


def test_what_is_not_served_is_left_out_and_counted(tmp_path: Path) -> None:
    names = ("model.layers.1.a", "model.layers.2.a", "model.layers.2.b", "model.layers.20.a")
    write_file(tmp_path / SINGLE, header_of(**{name: [2] for name in names}), 8 * len(names))
    checkpoint = Checkpoint(tmp_path, left_out=("model.layers.2.",))
    assert sorted(checkpoint.tensors) == ["model.layers.1.a", "model.layers.20.a"]
    assert checkpoint.num_left_out == 2


def test_what_programs_call_otherwise(tmp_path: Path) -> None:
    """Of two tensors that would have one name, one is unexpected."""
    names = ("text.blocks.0.a", "text.blocks.1.a", "text.layers.1.a", "eyes.blocks.0.a")
    write_file(tmp_path / SINGLE, header_of(**{name: [2] for name in names}), 8 * len(names))
    aliases = {"text.blocks.": "text.layers."}
    tensors = Checkpoint(tmp_path, aliases=aliases, left_out=("eyes.",)).tensors
    assert {name: info.name for name, info in tensors.items()} == {
        "text.layers.0.a": "text.blocks.0.a",
        "text.layers.1.a": "text.layers.1.a",
        "text.blocks.1.a": "text.blocks.1.a",
    }
