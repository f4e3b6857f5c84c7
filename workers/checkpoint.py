"""The tensors of a model folder by the headers of its safetensors files: nothing else is read.

Owns which file holds which tensor, and that headers tell the truth about their files. Torch-free,
so that the launcher can refuse a folder before anything heavy is imported. Knows no model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from switchyard.model_files import file_size, named, parse_object, read_object, shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FP8 = "F8_E4M3"
INT4 = ("I32", "I64")
VALUE_BYTES = {"BF16": 2, "F16": 2, "F32": 4, FP8: 1, "I32": 4, "I64": 8}
"""Of the types of weights that are read; whole numbers and 8 bits only where config.json asks for
them."""

_MAX_INDEX_BYTES = 128 << 20
_MAX_HEADER_BYTES = 32 << 20
_MAX_TENSORS = 250_000
_MAX_DIMS = 8
_MAX_SIZE = 1 << 62
# What follows from config.json, and some programs save all the same.
_DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file's header says of one tensor; ``name`` is what the file calls it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """The tensors of a folder in Hugging Face layout, without those that follow from config.json.

    Args:
        folder: holds model.safetensors, or the files model.safetensors.index.json names.
        left_out: what the names of tensors begin with that are not served: they are counted in
            `num_left_out`, and are no part of `tensors`.
        fp8: weights may be 8-bit floats, as config.json says.
        int4: weights may be packed 4-bit integers, as config.json says.
        aliases: what the names of tensors may begin with, and what they begin with in `tensors`.

    Raises:
        ValueError: one line naming the file, and what is wrong: it is missing, truncated, malformed
            or outside the folder, or holds weights of a type that is not read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fp8: bool = False,
        int4: bool = False,
        left_out: tuple[str, ...] = (),
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        not_asked = {*(() if fp8 else (FP8,)), *(() if int4 else INT4)}
        self.types = {name: size for name, size in VALUE_BYTES.items() if name not in not_asked}
        self.tensors: dict[str, TensorInfo] = {}
        mapping = self._mapping()
        for name in [SINGLE] if mapping is None else sorted(set(mapping.values())):
            self._add_file(name, is_indexed=mapping is not None)
        self._check_mapping(mapping or {})
        for alias, begins in (aliases or {}).items():
            self._rename(alias, begins)
        beside = [name for name in self.tensors if name.startswith(left_out)] if left_out else []
        self.num_left_out = len(beside)
        for name in beside:
            del self.tensors[name]

    @property
    def packed_experts(self) -> bool:
        """Whether a layer's experts stand in two tensors, ``[E, …]``, not in three an expert."""
        return any(name.endswith(".experts.gate_up_proj") for name in self.tensors)

    @property
    def packed_scales(self) -> bool:
        """Whether the scales of a layer's experts stand in two tensors, ``[E, …]``."""
        return any(name.endswith(".experts.gate_up_proj_scale_inv") for name in self.tensors)

    def type_of(self, ending: str) -> str | None:
        """That of the first tensor by name whose name ends so; None: there is none."""
        first = self._first(ending)
        return None if first is None else first.dtype

    def shape_of(self, ending: str) -> tuple[int, ...] | None:
        """As `type_of`."""
        first = self._first(ending)
        return None if first is None else first.shape

    def _first(self, ending: str) -> TensorInfo | None:
        name = min((name for name in self.tensors if name.endswith(ending)), default=None)
        return None if name is None else self.tensors[name]

    def sha256(self) -> str:
        """A digest of every tensor's name, type, shape and file, not of the values."""
        digest = hashlib.sha256()
        for name, info in sorted(self.tensors.items()):
            line = f"{name} {info.dtype} {info.shape} {info.file.name} {info.file.stat().st_size}\n"
            digest.update(line.encode(errors="surrogatepass"))
        return digest.hexdigest()

    def _mapping(self) -> dict[str, str] | None:
        """The file of each tensor, as the index has it; None where one file holds all."""
        path = self.folder / INDEX
        if not path.exists():
            if (self.folder / SINGLE).exists():
                return None
            raise ValueError(
                f"{self.folder}: has neither {INDEX} nor {SINGLE}; "
                "--load-format dummy serves made-up weights"
            )
        mapping = read_object(path, _MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise ValueError(f"{path}: has no weight_map; is it an index of safetensors files?")
        for tensor, file in mapping.items():
            if not isinstance(file, str):
                raise ValueError(f"{path}: weight_map has {shown(file)} for {shown(tensor)}")
        return mapping

    def _add_file(self, name: str, *, is_indexed: bool) -> None:
        path = self.folder / name
        parts = Path(name).parts
        if is_indexed and ("\0" in name or ".." in parts or Path(name).is_absolute()):
            raise ValueError(f"{self.folder / INDEX}: names {shown(name)}, outside the folder")
        size = file_size(path)
        if not path.resolve().is_relative_to(self.folder.resolve()) and not _is_hub_blob(path):
            raise ValueError(
                f"{path}: links to {path.resolve()}, outside the folder; copy or move the file here"
            )
        for tensor, info in _read_header(path, size, self.types).items():
            if tensor in self.tensors:
                first = self.tensors[tensor].file.name
                raise ValueError(f"{path}: tensor {named(tensor)} is also in {first}")
            self.tensors[tensor] = info
        if len(self.tensors) > _MAX_TENSORS:
            raise ValueError(f"{path}: the folder has more than {_MAX_TENSORS} tensors")

    def _rename(self, alias: str, begins: str) -> None:
        """One of two tensors that would have one name keeps its own, which no model asks for."""
        for name in [name for name in self.tensors if name.startswith(alias)]:
            known = begins + name.removeprefix(alias)
            if known not in self.tensors:
                self.tensors[known] = self.tensors.pop(name)

    def _check_mapping(self, mapping: dict[str, str]) -> None:
        for tensor, file in mapping.items():
            info = self.tensors.get(tensor)
            if not is_derived(tensor) and (info is None or info.file != self.folder / file):
                raise ValueError(
                    f"{self.folder / file}: tensor {named(tensor)} is missing, but {INDEX} puts it "
                    "there"
                )


def is_derived(tensor: str) -> bool:
    """Whether a tensor follows from config.json."""
    return tensor.endswith(_DERIVED)


def _is_hub_blob(path: Path) -> bool:
    """The Hub's cache keeps snapshots/<rev>/file as a link to ../../blobs/<hash>."""
    snapshot = path.parent.resolve()
    return (
        snapshot.parent.name == "snapshots"
        and path.resolve().parent == snapshot.parent.parent / "blobs"
    )


def _read_header(path: Path, size: int, types: dict[str, int]) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file of ``size`` bytes: 8 bytes of length, then JSON, then their
    values in a row, without holes, to the file's end."""
    data = _header_bytes(path, size)
    header = parse_object(f"{path}: its safetensors header", data)
    header.pop("__metadata__", None)
    places = sorted((*_place(path, name, entry, types), name) for name, entry in header.items())
    values_at = at = 8 + len(data)
    for begin, end, name in places:
        if values_at + begin != at:
            raise ValueError(
                f"{path}: tensor {named(name)} begins at {values_at + begin}, what is before it "
                f"ends at {at}: its safetensors header is malformed"
            )
        at = values_at + end
    if at != size:
        last = named(places[-1][2]) if places else "(none)"
        raise ValueError(
            f"{path}: {size} bytes, but tensor {last} ends at {at}: the file is "
            f"{'truncated' if size < at else 'longer than its header says'}"
        )
    return {
        name: TensorInfo(path, name, tuple(entry["shape"]), entry["dtype"])
        for name, entry in header.items()
        if not is_derived(name)
    }


def _header_bytes(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if length > size - 8:
                raise ValueError(
                    f"{path}: header of {length} bytes in a file of {size}: truncated or not "
                    "safetensors"
                )
            if length > _MAX_HEADER_BYTES:
                raise ValueError(
                    f"{path}: header of {length} bytes, at most {_MAX_HEADER_BYTES} are read; "
                    "save the tensors in several files"
                )
            return file.read(length)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def _place(path: Path, name: str, entry: Any, types: dict[str, int]) -> tuple[int, int]:
    """Where a tensor's values begin and end, which must be as far apart as they take."""
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    dtype = fields.get("dtype")
    if shape is None or offsets is None or len(offsets) != 2 or not isinstance(dtype, str):
        raise ValueError(
            f"{path}: tensor {named(name)} is {shown(entry)}: its safetensors header is malformed"
        )
    begin, end = offsets
    if is_derived(name):
        return begin, end
    if dtype not in types:
        raise ValueError(
            f"{path}: tensor {named(name)} has type {named(dtype)}, supported are "
            f"{', '.join(types)}; serve the model's checkpoint in one of them"
        )
    needed = math.prod(shape) * types[dtype]
    if end - begin != needed:
        raise ValueError(
            f"{path}: tensor {named(name)} of shape {shape} and type {dtype} takes {needed} bytes, "
            f"its data_offsets hold {end - begin}: its safetensors header is malformed"
        )
    return begin, end


def _sizes(value: Any) -> list[int] | None:
    """A short list of whole numbers; None for anything else."""
    if not isinstance(value, list) or len(value) > _MAX_DIMS:
        return None
    return value if all(type(each) is int and 0 <= each <= _MAX_SIZE for each in value) else None
