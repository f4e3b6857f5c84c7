"""The demo in 4-bit weights, in each form of checkpoints or made at load, served by one and by two
ranks on a CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo import CHECKPOINT
from tests.server import Server
from tests.service.test_fp8 import Demo, check
from tests.service.test_fp8_kv_cache import CPU_TOGETHER, right_answers
from tests.workers.config_json.test_int4_methods import AWQ, GPTQ, pack_quantized
from tests.workers.int4_models import quantize_folder

pytestmark = pytest.mark.processes

# Its inner sides are 256 and 128: groups, and layouts that do not cut them.
FORMS: dict[str, dict[str, Any]] = {
    "int4 by 128": GPTQ,
    "int4 by 64 with zero points": {**AWQ, "group_size": 64},
    "int4 by 32 with zero points": pack_quantized(symmetric=False),
}
CASES = [
    pytest.param("int4 by 128", "--tp 1", marks=pytest.mark.grid),
    pytest.param("int4 by 128", "--tp 2", marks=pytest.mark.grid),
    ("int4 by 64 with zero points", "--tp 2 --ep 1"),
    pytest.param("int4 by 32 with zero points", "--dp 2", marks=pytest.mark.grid),
    ("int4 by 32 with zero points", "--dp 2 --moe-ep-backend all_to_all"),
]


def make_demo(folder: Path, said: dict[str, Any]) -> Demo:
    shutil.copytree(CHECKPOINT, folder)
    return Demo.of(folder, quantize_folder(folder, said))


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Demo]:
    folder = tmp_path_factory.mktemp("demos")
    made: dict[str, Demo] = {}

    def demo(label: str) -> Demo:
        if label not in made:
            made[label] = make_demo(folder / label.replace(" ", "-"), FORMS[label])
        return made[label]

    return demo


@pytest.mark.parametrize(("label", "layout"), CASES)
def test_a_checkpoint_of_4_bit_weights(
    label: str, layout: str, demos: Callable[[str], Demo], tmp_path: Path
) -> None:
    demo = demos(label)
    check(demo, tmp_path, str(demo.folder), *layout.split(), label=label)


@pytest.mark.parametrize("layout", [pytest.param("--tp 1", marks=pytest.mark.grid), "--tp 2"])
async def test_4_bit_weights_that_are_made_at_load(layout: str, tmp_path: Path) -> None:
    """And answers, most of them right: to within two points of weights that are not quantized."""
    flags = (*CPU_TOGETHER, *layout.split(), "--quantization", "int4")
    with Server(tmp_path, *flags) as server:
        right, asked = await right_answers(server, 2)
        assert "int4 by 128, KV cache" in server.log
    assert asked >= 50
    assert right / asked > 0.97 - 0.02
