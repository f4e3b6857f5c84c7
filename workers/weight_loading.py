"""Loading a model folder's tensors into a rank's parameters, strictly and rank-locally.

Owns which files hold which tensors, that every tensor is there with the right shape and that
nothing is left over, the reading of slices, and the count of bytes. Knows nothing of layers or of
ranks' shares: modules say what they need as CheckpointSlices (layers/linear.py, moe/experts.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from moe.base.checkpoint_slice import CheckpointSlice

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_FLOAT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
_MAX_HEADER_BYTES = 100_000_000


class WeightsError(ValueError):
    """A model folder that can't be served; one line naming the file and the tensor."""


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file's header says of one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedWeights:
    """What a load did: bytes this rank read, and a digest of the whole checkpoint's headers."""

    bytes_read: int
    sha256: str


class Checkpoint:
    """The tensors of a folder in Hugging Face layout, by their files' headers.

    Args:
        folder: holds model.safetensors, or the files model.safetensors.index.json names.

    Raises:
        WeightsError: a file is missing, truncated, malformed or outside the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        mapping = self._mapping()
        files = sorted(set(mapping.values())) if mapping is not None else [_SINGLE]
        for name in files:
            self._add_file(name)
        if mapping is not None:
            self._check_mapping(mapping)

    @property
    def packed_experts(self) -> bool:
        """Whether a layer's experts stand in two tensors, ``[E, …]``, not in three an expert."""
        return any(name.endswith(".experts.gate_up_proj") for name in self.tensors)

    def sha256(self) -> str:
        """A digest of every tensor's name, type, shape and file, not of the values."""
        digest = hashlib.sha256()
        for name, info in sorted(self.tensors.items()):
            line = f"{name} {info.dtype} {info.shape} {info.file.name} {info.file.stat().st_size}\n"
            digest.update(line.encode())
        return digest.hexdigest()

    def _mapping(self) -> dict[str, str] | None:
        path = self.folder / _INDEX
        if not path.exists():
            if (self.folder / _SINGLE).exists():
                return None
            raise WeightsError(
                f"{self.folder}: has neither {_INDEX} nor {_SINGLE}; "
                "--load-format dummy serves made-up weights"
            )
        try:
            mapping = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            valid = all(isinstance(f, str) for pair in mapping.items() for f in pair)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise WeightsError(f"{path}: is not a safetensors index with a weight_map") from None
        if not valid:
            raise WeightsError(f"{path}: weight_map is not a map of names to file names")
        return dict(mapping)

    def _add_file(self, name: str) -> None:
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()) and not _is_hub_blob(path):
            raise WeightsError(f"{self.folder / _INDEX}: names {name!r}, outside the folder")
        for tensor, info in _read_header(path).items():
            if tensor in self.tensors:
                raise WeightsError(
                    f"{path}: tensor {tensor} is also in {self.tensors[tensor].file.name}"
                )
            self.tensors[tensor] = info

    def _check_mapping(self, mapping: dict[str, str]) -> None:
        for tensor, file in mapping.items():
            info = self.tensors.get(tensor)
            if info is None or info.file.name != Path(file).name:
                raise WeightsError(
                    f"{self.folder / file}: tensor {tensor} is missing, but {_INDEX} puts it there"
                )


def load_weights(
    slices: Iterable[CheckpointSlice], checkpoint: Checkpoint, ignore: frozenset[str] = frozenset()
) -> LoadedWeights:
    """Fill every slice's target from the checkpoint.

    Args:
        slices: all tensors of the model, those of other ranks too (these are checked, not read).
        checkpoint: the folder's tensors.
        ignore: names that may be present though the model does not use them.

    Raises:
        WeightsError: a tensor is missing, unexpected, of the wrong shape or type; a file's end is
            missing. Names and shapes are all checked before the first byte of weights is read.
    """
    wanted = list(slices)
    _check(wanted, checkpoint, ignore)
    by_file: dict[Path, list[CheckpointSlice]] = {}
    for piece in wanted:
        if piece.target is not None:
            by_file.setdefault(checkpoint.tensors[piece.name].file, []).append(piece)
    bytes_read = sum(_load_file(path, pieces) for path, pieces in by_file.items())
    needed = expected_bytes(wanted, checkpoint)
    assert bytes_read == needed, f"read {bytes_read} bytes of weights, this rank holds {needed}"
    return LoadedWeights(bytes_read=bytes_read, sha256=checkpoint.sha256())


def make_up_weights(slices: Iterable[CheckpointSlice], seed: int) -> None:
    """Fill every slice's target with made-up values: normal, std 0.02; norms 1.

    A generator seeded by the tensor's name draws the whole tensor, which is then sliced, so the
    values are the same for any layout on one kind of device.
    """
    for piece in slices:
        if piece.target is None:
            continue
        if piece.name.endswith("norm.weight"):
            piece.target.fill_(1.0)
            continue
        name = hashlib.sha256(f"{seed}/{piece.name}".encode()).digest()
        device = piece.target.device
        generator = torch.Generator(device=device).manual_seed(int.from_bytes(name[:7], "big"))
        whole = torch.empty(piece.shape, device=device, dtype=torch.float32)
        whole.normal_(0.0, 0.02, generator=generator)
        piece.target.copy_(whole[piece.index])


def expected_bytes(slices: Iterable[CheckpointSlice], checkpoint: Checkpoint) -> int:
    """Bytes the given slices occupy in the checkpoint: what a rank has to read, no more."""
    return sum(
        piece.target.numel() * _FLOAT_BYTES[checkpoint.tensors[piece.name].dtype]
        for piece in slices
        if piece.target is not None
    )


def _is_hub_blob(path: Path) -> bool:
    """The Hub's cache keeps snapshots/<rev>/file as a link to ../../blobs/<hash>."""
    snapshot = path.parent.resolve()
    return (
        snapshot.parent.name == "snapshots"
        and path.resolve().parent == snapshot.parent.parent / "blobs"
    )


def _read_header(path: Path) -> dict[str, TensorInfo]:
    """The header of a safetensors file: 8 bytes of length, then JSON; its offsets must end at the
    file's end."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if length > min(_MAX_HEADER_BYTES, size - 8):
                raise WeightsError(
                    f"{path}: header of {length} bytes in a file of {size}: truncated or not "
                    "safetensors"
                )
            header = json.loads(file.read(length))
        tensors = {
            name: (TensorInfo(path, tuple(entry["shape"]), entry["dtype"]), entry["data_offsets"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
        end = 8 + length + max((offsets[1] for _, offsets in tensors.values()), default=0)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: its safetensors header is malformed") from None
    if end != size:
        last = max(tensors, key=lambda name: tensors[name][1][1], default="(none)")
        raise WeightsError(
            f"{path}: {size} bytes, but tensor {last} ends at {end}: the file is "
            f"{'truncated' if size < end else 'longer than its header says'}"
        )
    return {name: info for name, (info, _) in tensors.items()}


def _check(wanted: list[CheckpointSlice], checkpoint: Checkpoint, ignore: frozenset[str]) -> None:
    for piece in wanted:
        info = checkpoint.tensors.get(piece.name)
        if info is None:
            raise WeightsError(f"{checkpoint.folder}: tensor {piece.name} is missing")
        if info.shape != piece.shape:
            raise WeightsError(
                f"{info.file}: tensor {piece.name} has shape {list(info.shape)}, "
                f"config.json asks for {list(piece.shape)}"
            )
        if info.dtype not in _FLOAT_BYTES:
            raise WeightsError(
                f"{info.file}: tensor {piece.name} has type {info.dtype}, "
                f"supported are {', '.join(_FLOAT_BYTES)}"
            )
    unexpected = sorted(checkpoint.tensors.keys() - {piece.name for piece in wanted} - ignore)
    if unexpected:
        first = checkpoint.tensors[unexpected[0]]
        raise WeightsError(
            f"{first.file}: tensor {unexpected[0]} is not part of this architecture"
            + (f" (and {len(unexpected) - 1} more)" if len(unexpected) > 1 else "")
        )


def _load_file(path: Path, pieces: list[CheckpointSlice]) -> int:
    bytes_read = 0
    try:
        with safe_open(path, framework="pt") as file:
            for piece in pieces:
                assert piece.target is not None
                values = file.get_slice(piece.name)[piece.index]
                piece.target.copy_(values)
                bytes_read += values.numel() * values.element_size()
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: {error}") from None
    return bytes_read
