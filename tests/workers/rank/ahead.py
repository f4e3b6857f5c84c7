"""What a start compiles ahead, for a GPU that is not there.

``python -m tests.workers.rank.ahead FAMILY SEED`` writes how many layers the model has, how many
are left with some of each kind, how many kernels those launch, how many of the whole model's are
none of these, and 0; with ``compile`` behind it, how many are when they have been compiled, and how
many steps passed for it.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

from triton import knobs
from triton.runtime.jit import JITFunction

from moe.base.context import KernelContext
from moe.base.tiles import TileTable
from moe.base.workspace import Workspace
from tests.absent_gpu import SHARED_BYTES, compile_for_hopper
from tests.workers.families.draws import FAMILIES, save_family
from tests.workers.steps import start_rank
from workers.config import WorkerConfig
from workers.config_json.model_config import ModelConfig
from workers.models.base import BuildContext, Model
from workers.models.decoder import Decoder
from workers.rank import compile_ahead, startup
from workers.rank.kv_sizing import cache_sizes
from workers.rank.runner_factory import RunnerFactory
from workers.step.runner import Runner

SHAPE = {"num_tokens": 64, "num_sequences": 8, "max_model_len": 64, "block_size": 16}


class Ahead:
    """Passes of a rank's start, which stops there."""

    def __init__(
        self, model: Decoder, config: WorkerConfig, model_config: ModelConfig, build: BuildContext
    ) -> None:
        self.whole, self.few = model, model.of_each_kind(model_config)
        factory = RunnerFactory(model, config, model_config, build, "float32")
        sizes = cache_sizes(
            model, model_config, config.block_size, build.dtype, config.max_batch_size
        )
        self.factory, self.rest = factory, (sizes, config, build)

    def run(self, model: Model) -> int:
        """The steps that pass."""
        launch = Mock(wraps=Runner.launch)
        with patch.object(Runner, "launch", lambda *about: launch(*about)):
            compile_ahead.compile_ahead(self.factory, model, *self.rest)
        return launch.call_count

    def missing(self, model: Model) -> set[str]:
        """Kernels of a pass that are not compiled yet, and are not by it."""
        seen: set[str] = set()

        def see(kernel: JITFunction[Any], key: str, *_: Any) -> None:
            seen.add(f"{kernel.__name__} {key}")
            knobs.compilation.listener(
                src=kernel, metadata={}, metadata_group={}, times=None, cache_hit=False
            )

        compile_kernel, JITFunction._do_compile = JITFunction._do_compile, see
        self.run(model)
        JITFunction._do_compile = compile_kernel
        return seen


def start(family: str, seed: int, folder: Path) -> Ahead:
    """A rank whose weights are there."""
    found: list[Ahead] = []

    def make_runner(model: Decoder, *facts: Any) -> Any:
        found.append(Ahead(model, *facts[:3]))
        raise InterruptedError

    config = FAMILIES[family](random.Random(seed))
    text = getattr(config, "text_config", config)
    num_layers = text.num_hidden_layers
    for name, value in vars(text).items():  # the same layers once more, and again
        if isinstance(value, list) and len(value) == num_layers:
            setattr(text, name, 3 * value)
    text.num_hidden_layers = 3 * num_layers
    save_family(config, folder, seed)
    startup._make_runner = make_runner
    compile_ahead.warm_up_shape = lambda config, build: SHAPE
    compile_for_hopper()
    context = KernelContext(
        workspace=Workspace("cpu"),
        tiles=TileTable(dtype="float32", item_size=4, shared_bytes=SHARED_BYTES),
        pdl=True,
        num_cores=132,
    )
    try:
        start_rank(folder, context, max_num_batched_tokens=64)
    except InterruptedError:
        return found[0]
    raise AssertionError


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ahead = start(sys.argv[1], int(sys.argv[2]), Path(folder))
        few, steps = ahead.missing(ahead.few), 0
        if sys.argv[3:]:
            steps = ahead.run(ahead.few)
            missed = ahead.missing(ahead.whole)
        else:
            missed = ahead.missing(ahead.whole) - few
        layers = [len(model.layers) for model in (ahead.whole, ahead.few)]
        sys.stdout.write(f"{layers[0]} {layers[1]} {len(few)} {len(missed)} {steps}\n")


if __name__ == "__main__":
    main()
