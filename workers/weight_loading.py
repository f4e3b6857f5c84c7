"""Loading a folder's tensors into a rank's parameters, strictly and rank-locally.

Owns that every tensor of the model is in the checkpoint with the right shape and that nothing is
left over, the slices that are read, and the count of bytes. Knows nothing of layers: a model says
what it needs as CheckpointSlices.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from moe.base.checkpoint_slice import FLOATS, CheckpointSlice, Expected
from switchyard.model_files import named
from workers.checkpoint import VALUE_BYTES, Checkpoint

# What stands beside 8-bit weights and is not needed: scales of activations, which are taken from
# the activations themselves, and of keys and values.
_UNUSED = ("input_scale", "activation_scale", "k_scale", "v_scale")


_TYPES = {
    FLOATS: ("BF16", "F16", "F32"),
    "float8_e4m3fn": ("F8_E4M3",), "bfloat16": ("BF16",), "float16": ("F16",), "float32": ("F32",),
    "int32": ("I32",), "int64": ("I64",),
}  # fmt: skip
"""What files call the types that slices ask for."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedWeights:
    """What a load did: bytes this rank read, and a digest of the whole checkpoint's headers."""

    bytes_read: int
    sha256: str


def check_tensors(
    slices: Iterable[CheckpointSlice], checkpoint: Checkpoint, ignore: frozenset[str] = frozenset()
) -> None:
    """Compare what a model asks for with what a checkpoint has; targets do not matter.

    Args:
        ignore: names that may be present though the model does not use them.

    Raises:
        ValueError: one line naming a tensor that is missing, unexpected or of the wrong shape.
    """
    unexpected = checkpoint.tensors.keys() - ignore
    quantized: set[str] = set()
    for piece in slices:
        info = checkpoint.tensors.get(piece.name)
        if info is None:
            raise ValueError(f"{checkpoint.folder}: tensor {piece.name} is missing")
        if info.shape != piece.shape:
            raise ValueError(
                f"{info.file}: tensor {piece.name} has shape {list(info.shape)}, "
                f"config.json asks for {list(piece.shape)}"
            )
        if info.dtype not in _TYPES[piece.dtype]:
            asked = " or ".join(", ".join(_TYPES[piece.dtype]).rsplit(", ", 1))
            raise ValueError(
                f"{info.file}: tensor {piece.name} has type {info.dtype}, "
                f"config.json asks for {asked}"
            )
        unexpected.discard(piece.name)
        if piece.is_fp8:
            module = piece.name.rpartition(".")[0]
            quantized.update((module, module.rpartition(".")[0]))
    unexpected -= {f"{module}.{name}" for module in quantized for name in _UNUSED}
    if unexpected:
        name = min(unexpected)
        more = f" (and {len(unexpected) - 1} more)" if len(unexpected) > 1 else ""
        raise ValueError(
            f"{checkpoint.tensors[name].file}: tensor {named(name)} is not part of this "
            f"architecture{more}"
        )


def load_weights(
    slices: Iterable[CheckpointSlice],
    checkpoint: Checkpoint,
    ignore: frozenset[str] = frozenset(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LoadedWeights:
    """Fill every slice's target from the checkpoint.

    Args:
        slices: all tensors of the model, those of other ranks too (these are checked, not read).
        checkpoint: the folder's tensors.
        ignore: names that may be present though the model does not use them.
        progress: told after each tensor the bytes that were read, and those there are to read.

    Raises:
        ValueError: as `check_tensors` raises it, before the first byte of weights is read; or a
            file cannot be read to its end.
    """
    wanted = list(slices)
    check_tensors(wanted, checkpoint, ignore)
    by_file: dict[Path, list[CheckpointSlice]] = {}
    for piece in wanted:
        if piece.target is not None:
            by_file.setdefault(checkpoint.tensors[piece.name].file, []).append(piece)
    bytes_read, needed = 0, expected_bytes(wanted, checkpoint)
    for path, pieces in by_file.items():
        names = {piece.name: checkpoint.tensors[piece.name].name for piece in pieces}
        for num_bytes in _load_file(path, pieces, names):
            bytes_read += num_bytes
            progress(bytes_read, needed)
    assert bytes_read == needed, f"read {bytes_read} bytes of weights, this rank holds {needed}"
    return LoadedWeights(bytes_read=bytes_read, sha256=checkpoint.sha256())


def make_up_weights(slices: Iterable[CheckpointSlice], seed: int) -> None:
    """Fill every slice's target with made-up values: normal, std 0.02; norms 1.

    A generator seeded by the tensor's name draws the whole tensor, which is then sliced, so the
    values are the same for any layout on one kind of device.
    """
    for piece in slices:
        if piece.target is None or isinstance(piece.target, Expected):
            continue
        if piece.name.endswith("norm.weight"):
            piece.fill(torch.ones(()))
            continue
        name = hashlib.sha256(f"{seed}/{piece.name}".encode()).digest()
        device = piece.target.device
        generator = torch.Generator(device=device).manual_seed(int.from_bytes(name[:7], "big"))
        whole = torch.empty(piece.shape, device=device, dtype=torch.float32)
        whole.normal_(0.0, 0.02, generator=generator)
        piece.fill(whole[piece.index])


def expected_bytes(slices: Iterable[CheckpointSlice], checkpoint: Checkpoint) -> int:
    """Bytes the given slices occupy in the checkpoint: what a rank has to read, no more."""
    return sum(
        piece.num_values * VALUE_BYTES[checkpoint.tensors[piece.name].dtype] for piece in slices
    )


def _values(file: Any, name: str, piece: CheckpointSlice) -> torch.Tensor:
    """A piece's values, from the opened file that holds it by this name."""
    values: torch.Tensor = (
        file.get_slice(name)[piece.index] if piece.shape else file.get_tensor(name)
    )
    return values


def _load_file(
    path: Path, pieces: list[CheckpointSlice], names: Mapping[str, str]
) -> Iterator[int]:
    """Read a file's pieces, whose ``names`` there are by theirs; yields the bytes of each."""
    try:
        with safe_open(path, framework="pt") as file:
            for piece in pieces:
                values = _values(file, names[piece.name], piece)
                piece.fill(values)
                yield values.numel() * values.element_size()
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
