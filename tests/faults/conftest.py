"""The model of servers that are disturbed: what it says does not matter, so one layer is enough."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from demo import CHECKPOINT


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's first layer, under its name."""
    folder = tmp_path_factory.mktemp("one-layer") / "demo"
    weights = "model.safetensors"
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns(weights))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    tensors = load_file(CHECKPOINT / weights)
    later = tuple(f"model.layers.{number}." for number in range(1, config["num_hidden_layers"]))
    kept = {name: tensors[name] for name in tensors if not name.startswith(later)}
    save_file(kept, folder / weights, metadata={"format": "pt"})
    return folder
