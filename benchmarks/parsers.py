"""What the parsers of thoughts and calls cost a stream: the same chats, with them and without.

``python -m benchmarks.parsers [--sizes NAME] [--batch-sizes 1 8 64] [--tokens 256] [--repeat 3]
[--json FILE] [-- SERVE_FLAGS]``

The demo's steps are short, so that what parsers cost shows; ``--sizes qwen3-30b-a3b`` gives its
tokenizer and template to made-up weights of real sizes, whose steps are those that people wait for.
Both kinds of server are started anew for each repeat, by turns. A chat has a tool, and goes on to
its last token whatever the model says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.roofline import CONFIGS
from benchmarks.server import Server, add_flags, started
from demo import CHECKPOINT
from switchyard.client import AsyncClient

_OFF = ("--reasoning-parser", "none", "--tool-call-parser", "none")
_KINDS: dict[str, tuple[str, ...]] = {"with": (), "without": _OFF}
_QUESTION = "Tell me a story about a fox."
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}


def main() -> None:
    """Measure every batch size, and print one row each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parsers", description=__doc__)
    parser.add_argument(
        "--sizes", help="a folder of benchmarks/configs: made-up weights of its sizes"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=256, help="of each stream")
    parser.add_argument("--repeat", type=int, default=3)
    report.add_flags(parser)
    add_flags(parser)
    flags = parser.parse_args()
    if flags.address:
        parser.error("--address: servers of both kinds are started here; leave it out")
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    title = ""
    with report.progress() as bar, tempfile.TemporaryDirectory() as folder:
        if flags.sizes:
            flags.model = str(demo_of_sizes(flags.sizes, Path(folder) / flags.sizes))
            flags.serve_args = ["--load-format", "dummy", *flags.serve_args]
        task = bar.add_task("servers", total=flags.repeat * len(_KINDS))
        for _ in range(flags.repeat):
            for kind, extra in _KINDS.items():
                arguments = [*flags.serve_args, *extra]
                with started(flags.model, arguments, flags.startup_timeout) as server:
                    title = server.describe()
                    for batch in flags.batch_sizes:
                        found[kind, batch].append(asyncio.run(_tpot(server, batch, flags.tokens)))
                bar.advance(task)
    rows = [_row(batch, found) for batch in flags.batch_sizes]
    report.show(f"Parsers of thoughts and calls: {title}", rows, flags.json)


def demo_of_sizes(name: str, folder: Path) -> Path:
    """A new ``folder``, with the sizes of a model of benchmarks/configs, and the demo's words."""
    folder.mkdir()
    own = json.loads((CHECKPOINT / "config.json").read_text())
    sizes = json.loads((CONFIGS / name / "config.json").read_text())
    words = {key: own[key] for key in own if key == "vocab_size" or key.endswith("_token_id")}
    (folder / "config.json").write_text(json.dumps(sizes | words))
    for path in CHECKPOINT.glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return folder


async def _tpot(server: Server, batch: int, tokens: int) -> float:
    """Seconds a token behind the first, the median of streams; a first round warms up."""
    async with AsyncClient(server.address) as client:
        for count in (min(tokens, 16), tokens):
            each = await asyncio.gather(*(_stream(client, count) for _ in range(batch)))
    return statistics.median(each)


async def _stream(client: AsyncClient, tokens: int) -> float:
    messages = [{"role": "user", "content": _QUESTION}]
    options: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
    first = last = 0.0
    count = 0
    async with client.chat(messages, tools=[_TOOL], **options) as stream:
        async for delta in stream:
            last = time.perf_counter()
            if not first:
                first = last
            else:
                count += len(delta.token_ids)
    return (last - first) / max(1, count)


def _row(batch: int, found: dict[tuple[str, int], list[float]]) -> report.Row:
    medians = {kind: statistics.median(found[kind, batch]) for kind in _KINDS}
    return {
        "streams": batch,
        **{f"{kind} ms": 1e3 * seconds for kind, seconds in medians.items()},
        "ratio": medians["with"] / medians["without"],
    }


if __name__ == "__main__":
    main()
