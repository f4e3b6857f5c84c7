"""What the kernels of a rank share.

Owns `KernelContext`. A module that has one runs Triton kernels, one that has None plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from moe.base.tile_files import load_book
from moe.base.tiles import TileTable
from moe.base.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelContext:
    """`pdl`: kernels are chained by programmatic dependent launch. `num_cores`: multiprocessors.
    `specialized`: many rows of eight bits are multiplied by kernels of Hopper GPUs alone."""

    workspace: Workspace
    tiles: TileTable
    pdl: bool
    num_cores: int
    specialized: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The model's."""
        dtype: torch.dtype = getattr(torch, self.tiles.dtype)
        return dtype


def make_context(device: torch.device, dtype: torch.dtype) -> KernelContext:
    """The context of a CUDA device. Raises ValueError for a file of tiles that cannot be read."""
    properties = torch.cuda.get_device_properties(device)
    return KernelContext(
        workspace=Workspace(device),
        tiles=load_book(
            device_name=properties.name,
            triton_version=triton.__version__,
            dtype=str(dtype).removeprefix("torch."),
            item_size=dtype.itemsize,
            shared_bytes=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        ),
        pdl=properties.major >= 9,
        num_cores=properties.multi_processor_count,
        specialized=properties.major == 9,
    )
